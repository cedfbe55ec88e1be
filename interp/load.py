"""Open a model by name, folder or module."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from attlas.data.files import sha256_file
from attlas.data.images.processor import ImageSpec
from attlas.data.models_catalog import resolve_model
from attlas.data.result import reference
from attlas.data.workspace import Ref
from attlas.errors import CheckpointError, ConfigError, MissingExtraError, ModelNotFoundError, UnsupportedModelError
from attlas.interp.checkpoint import check_sizes, check_tied, model_class, read_config, remote_class, weight_shapes
from attlas.interp.families import overrides, supported, unsupported
from attlas.interp.model import HookedModel
from attlas.interp.wrappers.bridge import unbridged
from attlas.interp.wrappers.compiled import uncompiled
from attlas.interp.wrappers.placed import refuse_packed, require_present

# transformers takes weight tying off its base class while it loads; two loads at once could leave it off for good.
LOADING = threading.RLock()
PREFIX = "attlas_pruned_"  # of model types; see modeling_attlas_pruned, which imports transformers
# What a tokenizer may be stored as: one of these sets of files.
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",))
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

AnyModel = str | Path | nn.Module | HookedModel
"""What is taken wherever a model is: a name, folder or hub id, a Hugging Face model, a TransformerBridge, a HookedModel."""


def as_hooked(model: AnyModel) -> HookedModel:
    """A HookedModel as it is; anything else opened by `load_model`.

    A module is wrapped (and its weights hashed) anew by every call; for many calls, open it once with `load_model`.

    Raises: as `load_model`.

    Example:
        >>> from attlas.interp import as_hooked
        >>> as_hooked(model) is model, as_hooked("gpt2-mini").name
        (True, 'gpt2-mini')
    """
    return model if isinstance(model, HookedModel) else load_model(model)


def load_model(
    name_or_path: AnyModel,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> HookedModel:
    """Open a model of a supported family (docs/models.md).

    From a folder, GPT-2's `gelu_new` runs as torch's fused kernel (the same formula); all else is the module as it is.

    Args:
        name_or_path: an embedded or fetched model's name, a Hugging Face folder, a hub id, or a loaded module
            (a Hugging Face model, or TransformerLens's TransformerBridge, whose Hugging Face model is taken: the same
            weights, without the bridge's hooks). A HookedModel comes back as it is.
        device: "cpu", "cuda", "auto" (CUDA when there is one).
        dtype: weights and activations.
        device_map: in place of `device`: how Accelerate spreads the layers over several devices, such as "auto", or
            module → device. Inputs go to the first; each layer's activations are where the layer is.
        trust_remote_code: run code that lies beside the weights (`auto_map`), of the model and of its tokenizer. It
            can do anything; without this it is never run, and transformers' own class is used.

    Raises:
        ConfigError: device or device_map cannot be used, or part of the model would not be in memory.
        ModelNotFoundError: nothing has this name.
        UnsupportedModelError: no adapter for the architecture.
        CheckpointError: weights, config or tokenizer are damaged, incomplete, or contradict each other.

    Example:
        >>> from attlas import load_model
        >>> model = load_model("gpt2-mini", device="cpu")
        >>> model(model.to_tokens("one two one")).shape  # [batch, tokens, vocabulary]
        torch.Size([1, 4, 4096])
    """
    place = _placed(device, device_map)
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype '{dtype}' is not one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[dtype]
    if isinstance(name_or_path, HookedModel):
        return name_or_path
    if not isinstance(name_or_path, (str, Path)):
        return wrap_module(name_or_path)
    found = resolve_model(str(name_or_path))
    hf = _load_folder(found.folder, found.name, dtype, place, trust_remote_code).eval()
    return HookedModel(
        hf,
        name=found.name,
        weight_hash=folder_hash(found.folder),
        tokenizer=_tokenizer(found.folder, trust_remote_code),
        image_spec=_image_spec(found.folder),
    )


def _placed(device: str | torch.device, device_map: str | dict[str, Any] | None) -> torch.device | str | dict[str, Any]:
    """A device, or a map of Accelerate's."""
    if device_map is None:
        return find_device(device)
    if str(device) != "auto":
        raise ConfigError(f"device '{device}' and a device_map are two places; give one of them")
    if find_spec("accelerate") is None:
        raise MissingExtraError("device_map needs the package accelerate: pip install accelerate")
    if isinstance(device_map, str) and device_map not in _DEVICE_MAPS:
        find_device(device_map)
    return device_map


def find_device(device: str | torch.device) -> torch.device:
    """A device by name, one that works here; "auto" is CUDA where there is one.

    Raises:
        ConfigError: there is no such device here.

    Example:
        >>> from attlas.interp.load import find_device
        >>> find_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device '{device}' cannot be used ({_first_line(error)}); use cpu, cuda or auto") from error
    return found


def wrap_module(module: Any) -> HookedModel:
    """A HookedModel around a module in memory; its weights are hashed, its device, dtype and training mode kept.

    Warns when the module is in training mode and has dropout: what is measured is then random.

    Raises:
        UnsupportedModelError: a HookedTransformer (its weights are rewritten; use TransformerBridge), or no adapter.
    """
    tokenizer = getattr(module, "tokenizer", None)
    if type(module).__name__ == "HookedTransformer":
        raise UnsupportedModelError(
            "a HookedTransformer holds rewritten weights; pass a TransformerBridge or the model's name"
        )
    hf = unbridged(module)
    plain = uncompiled(hf)
    require_present(plain, type(plain).__name__)
    if plain.training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in plain.modules()):
        warnings.warn(
            f"{type(plain).__name__} is in training mode, with dropout; call .eval() first to measure it as it is used",
            stacklevel=3,
        )
    config = getattr(plain, "config", None)
    name = str(getattr(config, "_name_or_path", "") or type(plain).__name__)
    weight_hash = folder_hash(Path(name)) if _holds_files_of(plain, Path(name)) else _hash_in_memory(plain)
    return HookedModel(hf, name=Path(name).name or type(plain).__name__, weight_hash=weight_hash, tokenizer=tokenizer)


def _hash_in_memory(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _holds_files_of(module: nn.Module, folder: Path) -> bool:
    """Whether all weights of a module are those of the folder that it says it was opened from, in the module's own type."""
    files = sorted(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []
    state = dict(module.state_dict())
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    same: set[int] = set()
    for path in files:
        try:
            with safe_open(path, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    names = (key, prefix + key, key.removeprefix(prefix))
                    mine = next((state[name] for name in names if name in state), None)
                    if mine is not None and not torch.equal(tensors.get_tensor(key).to(mine.dtype), mine.cpu()):
                        return False
                    same |= set() if mine is None else {mine.data_ptr()}
        except (OSError, SafetensorError, RuntimeError):
            return False
    return bool(files) and all(p.data_ptr() in same for p in module.parameters())


@reference.register(nn.Module)
@reference.register(str)
@reference.register(Path)
def _reference(model: AnyModel) -> Ref:
    return as_hooked(model).ref


def _load_folder(
    folder: Path, name: str, dtype: torch.dtype, place: torch.device | str | dict[str, Any], trust: bool
) -> Any:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelNotFoundError(f"'{folder}' has no config.json; give a Hugging Face model folder")
    config = read_config(folder)
    stated = config.get("model_type")
    model_type = stated.removeprefix(PREFIX) if isinstance(stated, str) else stated
    if not isinstance(model_type, str) or model_type not in supported():
        own = "; code beside its weights would not change that: Attlas has no adapter for its layers"
        raise UnsupportedModelError(f"{name}: {unsupported(model_type)}{own if config.get('auto_map') else ''}")
    refuse_packed(config.get("quantization_config"), name)
    shapes = weight_shapes(folder)
    if trust and config.get("auto_map"):
        cls = remote_class(folder, config)
    elif model_type == stated:
        cls = model_class(folder, config, shapes)
    else:  # a compact pruned checkpoint, by Attlas's own copy of its code
        from attlas.interp.pruned.whole import compact_class, whole_layout

        cls = compact_class(str((config.get("architectures") or [""])[0]))
    with LOADING, quiet():
        check_sizes(folder, cls, shapes)
    try:
        with LOADING, quiet():
            model, info = cls.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                attn_implementation="sdpa" if cls._supports_sdpa else "eager",
                trust_remote_code=trust,  # code that lies beside the weights
                output_loading_info=True,
                **overrides(model_type),
                **({} if isinstance(place, torch.device) else {"device_map": place}),
            )
    except Exception as error:  # safetensors, json and shape errors come in many classes
        files = ", ".join(p.name for p in sorted(folder.glob("*.safetensors"))) or "no .safetensors file"
        raise CheckpointError(f"cannot read the weights in '{folder}' ({files}): {_first_line(error)}") from error
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing:
        raise CheckpointError(
            f"'{folder}' lacks {len(missing)} weights, such as {', '.join(missing[:3])}; the checkpoint is incomplete"
        )
    check_tied(folder, model, shapes)
    if model_type != stated and not trust:
        model = whole_layout(model)
    _fuse_gelu(model)
    if isinstance(place, torch.device):
        return model.to(place)
    if away := [key for key, parameter in model.named_parameters() if parameter.is_meta]:
        raise ConfigError(
            f"device_map '{place}' leaves {len(away)} weights of {name} out of the devices' memory, such as {away[0]}; hooks "
            "need them there: open it in bfloat16, or on more devices"
        )
    return model


def _fuse_gelu(model: torch.nn.Module) -> None:
    """GPT-2's `gelu_new` as torch's own kernel: the same formula in one pass over memory, not in seven."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers while loading: missing weights become an error of ours."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def folder_hash(folder: Path) -> str:
    """Sixteen hex digits over all weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()[:16]


def _tokenizer(folder: Path, trust: bool) -> Any:
    """The folder's tokenizer; a checkpoint folder without one takes its parents' (checkpoints/step-…)."""
    for place in (folder, folder.parent, folder.parent.parent):
        if any(all((place / name).is_file() for name in names) for names in _TOKENIZER_FILES):
            from transformers import AutoTokenizer

            try:
                with quiet():
                    return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=trust)
            except Exception as error:  # json, sentencepiece, protobuf, missing packages: many classes
                raise CheckpointError(
                    f"cannot read the tokenizer in '{place}' ({_first_line(error)}); mend or remove its files"
                ) from error
    return None


def _image_spec(folder: Path) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        return None
    return ImageSpec.from_folder(folder)

"""What a checkpoint folder says of itself, compared with the weights' headers before a tensor is allocated."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from attlas.errors import CheckpointError, UnsupportedModelError

Shapes = dict[str, tuple[int, ...]]

# Keys of config.json that count something: each a whole number of at least 1 wherever it stands.
_COUNTS = (
    "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads",
    "head_dim", "intermediate_size", "n_inner", "vocab_size", "max_position_embeddings", "n_positions", "num_channels",
)  # fmt: skip
_MAY_BE_NONE = ("n_inner", "head_dim", "num_key_value_heads")
_SIDES = ("image_size", "patch_size")
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "mlp_ratio")
_LAYER = re.compile(r"(?:^|\.)(?:h|layer|layers)\.(\d+)\.")
_TOWERS = ("vision_config", "text_config")  # of a model of two towers
_HEADS = ("lm_head.", "classifier.", "cls_classifier.")
_MOST_LAYERS = 2048  # more take minutes to make, even without memory
_SLACK = 1.5  # a model may hold this many times its file's numbers (tied weights, a pooler that is not stored)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with every count a number.

    Raises:
        CheckpointError: not a JSON object, or a value of the wrong kind.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"'{path}' holds a {type(config).__name__}, not a JSON object")
    for tower in ("", *_TOWERS):
        part = config.get(tower) if tower else config
        if part is not None and not isinstance(part, dict):
            raise _wrong(path, tower, part, "a JSON object")
        _check_values(path, part or {}, f"{tower}." if tower else "")
    stated = config.get("architectures")
    if stated is not None and not (isinstance(stated, list) and all(isinstance(a, str) for a in stated)):
        raise _wrong(path, "architectures", stated, "a list of class names")
    return config


def _check_values(path: Path, config: Mapping[str, Any], within: str) -> None:
    for key in _COUNTS:
        value = config.get(key, 1)
        if not (_is_count(value) or (value is None and key in _MAY_BE_NONE)):
            raise _wrong(path, within + key, value, "a whole number ≥ 1")
    for key in _SIDES:
        value = config.get(key, 1)
        if not (_is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))):
            raise _wrong(path, within + key, value, "a whole number of pixels ≥ 1, or two")
    for key in _POSITIVE:
        value = config.get(key, 1)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise _wrong(path, within + key, value, "a number > 0")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _wrong(path: Path, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"'{path}': {key} is {json.dumps(value)[:60]}, not {wanted}; mend config.json")


def weight_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, from their headers.

    Raises:
        CheckpointError: a header cannot be read.
    """
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                if length > path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(handle.read(length))
            shapes |= {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read the weights in '{folder}' ({path.name}): {error}") from error
    return shapes


def model_class(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> Any:
    """The transformers class to open a folder with: the stated one, else one that fits its weights.

    Without `architectures`, a head's own weights, or weights under the base model's prefix (so saved with a head that
    is tied to the embedding), make a model with that head; bare weights make a backbone.

    Raises:
        UnsupportedModelError: transformers has no class of the stated name.
        CheckpointError: the stated class is a backbone, but the weights hold a head.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    stated = config.get("architectures") or []
    known = next((getattr(transformers, name) for name in stated if hasattr(transformers, name)), None)
    heads = sorted({key.split(".")[0] for key in shapes if key.startswith(_HEADS)})
    with_head = _class_with_head(str(config["model_type"]), "cls_classifier" in heads)
    if stated and known is None:
        raise UnsupportedModelError(
            f"'{folder}': transformers has no {stated[0]}; write a class it has in config.json, such as "
            f'"architectures": ["{with_head.__name__}"]'
        )
    if known is None:
        prefixed = bool(shapes) and all(not _bare(key) for key in shapes)
        return (
            with_head
            if heads or (prefixed and with_head.__name__.endswith(("LMHeadModel", "CausalLM")))
            else getattr(transformers, str(MODEL_MAPPING_NAMES[str(config["model_type"])]))
        )
    if heads and known.__name__ == MODEL_MAPPING_NAMES.get(str(config["model_type"])):
        raise CheckpointError(
            f"'{folder}' holds {heads[0]} weights, but config.json states the backbone {known.__name__}; "
            f'write "architectures": ["{with_head.__name__}"] to use them'
        )
    return known


def remote_class(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class that the code beside the weights defines, which this runs: only where it is trusted.

    Raises:
        CheckpointError: `auto_map` names no causal language model, classifier or backbone, or its code cannot be run.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    stated = config["auto_map"] if isinstance(config["auto_map"], dict) else {}
    wanted = ("AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModel")
    name = next((stated[key] for key in wanted if isinstance(stated.get(key), str)), None)
    if name is None:
        raise CheckpointError(f"'{folder}': auto_map of config.json names none of {', '.join(wanted)}")
    try:
        return get_class_from_dynamic_module(name, folder, local_files_only=True)
    except Exception as error:  # its code may raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"'{folder}': the code of {name} cannot be run ({lines[0]})") from error


def check_tied(folder: Path, model: Any, shapes: Shapes) -> None:
    """Refuse weights that hold an unembedding of its own where config.json ties it to the embedding.

    Which of the two is used depends on the library that opens them, and its version.

    Raises:
        CheckpointError: the two matrices differ.
    """
    stored = [key for key in shapes if key.split(".")[-2:] in (["lm_head", "weight"], ["embed_out", "weight"])]
    if not stored or not getattr(model.config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight.is_meta:
        return
    same = head.weight is not embedding.weight and torch.equal(head.weight, embedding.weight)
    if head.weight is embedding.weight:
        same = torch.equal(_stored(folder, stored[0]).to(head.weight), head.weight)
    if not same:
        raise CheckpointError(
            f"'{folder}': config.json ties the unembedding to the embedding, and the weights hold another {stored[0]}; "
            'write "tie_word_embeddings": false in config.json to use it, or delete it'
        )


def _stored(folder: Path, key: str) -> torch.Tensor:
    """One tensor of the folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if key in file.keys():  # noqa: SIM118
                return torch.as_tensor(file.get_tensor(key))
    raise CheckpointError(f"'{folder}' lacks {key}; the checkpoint is incomplete")


def _bare(key: str) -> bool:
    """Whether a weight stands at the top, as a backbone saves it."""
    return key.split(".")[0] in ("h", "wte", "wpe", "ln_f", "layers", "norm", "embed_tokens", "embeddings", "encoder")


def _class_with_head(model_type: str, two_heads: bool) -> Any:
    """The family's causal language model, or its image classifier (DeiT's second one: with a teacher's head)."""
    from transformers.models.auto import modeling_auto as auto

    for names in (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES):
        if model_type in names:
            import transformers

            name = names[model_type]
            return getattr(transformers, name if isinstance(name, str) else name[int(two_heads)])
    import transformers

    if model_type in auto.MODEL_MAPPING_NAMES:  # a vision tower, a masked autoencoder
        return getattr(transformers, str(auto.MODEL_MAPPING_NAMES[model_type]))
    raise UnsupportedModelError(f"transformers has no model with a head for '{model_type}'")


def check_sizes(folder: Path, cls: Any, shapes: Shapes) -> None:
    """Build the model without memory (torch's meta device) and compare it with the headers.

    Raises:
        CheckpointError: config.json makes other layers or shapes than the weights have, or cannot be built at all.
    """
    from transformers import AutoConfig

    if not shapes:
        return
    try:
        compact = cls.__name__.startswith("Pruned")  # its config class is not registered; a layer may hold no weights
        kind: Any = cls.config_class if compact else AutoConfig
        config: Any = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_layers(folder, config, shapes, compact)
        with torch.device("meta"):
            model = cls(config)
    except CheckpointError:
        raise
    except Exception as error:  # constructors raise what they like: ValueError, TypeError, ZeroDivisionError, …
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise CheckpointError(f"'{folder}': config.json makes no model ({' '.join(lines)[:200]}); mend it") from error
    made = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    prefix = model.base_model_prefix + "."
    for key, shape in shapes.items():
        wanted = made.get(key, made.get(prefix + key, made.get(key.removeprefix(prefix))))
        if wanted is not None and wanted != shape:
            raise CheckpointError(
                f"'{folder}': config.json makes {key} {list(wanted)}, the weights hold {list(shape)}; mend config.json"
            )
    there, needed = (sum(math.prod(shape) for shape in every.values()) for every in (shapes, made))
    tied = sum(math.prod(made[key]) for key in made if key.startswith(_HEADS) and key not in shapes)
    if needed - tied > _SLACK * there:
        raise CheckpointError(
            f"'{folder}': config.json makes a model of {needed:,} numbers, the weights hold {there:,}; mend config.json"
        )


def _check_layers(folder: Path, config: Any, shapes: Shapes, compact: bool) -> None:
    parts = {key.replace("_config", "_model."): getattr(config, key, None) for key in _TOWERS}
    towers = {within: part for within, part in parts.items() if part is not None} or {"": config}
    for within, part in towers.items():
        keys = [key for key in shapes if within in key]
        numbers = {int(found.group(1)) for key in keys if (found := _LAYER.search(key))}
        n_layers = int(part.num_hidden_layers)
        if n_layers > _MOST_LAYERS or (numbers and len(numbers) != n_layers and not compact):
            of = f" of its {within[:-1].replace('_', ' ')}" if within else ""
            raise CheckpointError(
                f"'{folder}': config.json states {n_layers} layers{of}, the weights hold {len(numbers)}; mend config.json"
            )

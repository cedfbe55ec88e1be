"""SAELens folders, which are Attlas's own format too: `cfg.json` and `sae_weights.safetensors`.

Written as SAELens ≥ 6 writes inference SAEs (BatchTopK and Matryoshka become JumpReLU with their threshold), with
Attlas's own configuration under `metadata.attlas`. Read: SAELens ≥ 6, its training checkpoints, and pre-6 folders
(`hook_point`, `activation_fn_str` …).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attlas._version import __version__
from attlas.data.files import atomic_path, write_text_atomic
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.architectures import ARCHITECTURES
from attlas.saes.base import SAE
from attlas.saes.config import DTYPES, NORMALISATIONS, SAEConfig
from attlas.saes.formats.fields import SAELENS_HARMLESS, flag, neutral, refuse_unknown, section, text, whole, words
from attlas.saes.formats.files import build, read_json, read_safetensors
from attlas.saes.formats.scaler import SCALED, WHITENED, fold_input_maps

NAME = "saelens"
FORMAT_VERSION = 1
SAELENS_VERSION = "6.54.12"  # the release whose format this is
_CFG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_READ = words(
    "architecture d_in d_sae k matryoshka_widths dtype apply_b_dec_to_input context_size normalize_activations "
    "reshape_activations metadata rescale_acts_by_decoder_norm model_name activation_fn activation_fn_kwargs hook_name "
    "finetuning_scaling_factor exclude_special_tokens"
)
# Under these, other activations than the whole hook's are read or reconstructed; they may stand in the metadata too.
_REFUSED = ("hook_head_index", "hook_name_out", "hook_head_index_out", "d_out", "is_transcoder")
_ARCHS = {  # SAELens's training classes under our names
    "standard": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
}


def detect(path: Path) -> bool:
    return path.is_dir() and (path / _CFG).is_file() and (path / _WEIGHTS).is_file()


# -- writing -----------------------------------------------------------------------------------------------------------


def save(sae: SAE, folder: Path) -> Path:
    """Write the folder; each file appears whole or not at all."""
    cfg = sae.cfg
    state = {sae.saelens_names.get(name, name): t.detach().cpu().contiguous() for name, t in sae.state_dict().items()}
    record: dict[str, Any] = {
        "architecture": sae.saelens_arch,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": cfg.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": cfg.apply_b_dec_to_input,
        "normalize_activations": cfg.normalisation,
        "reshape_activations": "hook_z" if cfg.hook_name.endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": cfg.model_name or None,
            "hook_name": cfg.hook_name or None,
            "context_size": cfg.context_size,
            "dataset_path": cfg.data_name or None,
            "attlas": {"format": FORMAT_VERSION, "version": __version__, "config": cfg.to_json()},
        },
    }
    if sae.saelens_arch == "topk":
        record |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / _WEIGHTS) as temporary:
        save_file(state, temporary)
    write_text_atomic(folder / _CFG, json.dumps(record, indent=1) + "\n")
    return folder


# -- reading -----------------------------------------------------------------------------------------------------------


def load(folder: Path) -> SAE:
    """Read a folder of any of the dialects above.

    Raises:
        SAEFormatError: a file is missing or damaged, weights lack keys, or the architecture is not one of ours.
    """
    source = folder / _CFG
    record = read_json(source)
    metadata = section(record, "metadata", source)
    own = section(metadata, "attlas", source)
    if own:
        if whole(own, "format", source) > FORMAT_VERSION:
            raise SAEFormatError(
                f"'{source}' has format {own['format']}, this attlas reads up to {FORMAT_VERSION}; upgrade it"
            )
        try:
            cfg = SAEConfig.from_json(section(own, "config", source))
        except ConfigError as error:
            raise SAEFormatError(f"'{source}': {error}") from error
        return build(cfg, read_safetensors(folder / _WEIGHTS), folder)
    record = _modern(record, metadata, source)
    cfg = _config(record, source)
    return build(cfg, _modern_state(record, read_safetensors(folder / _WEIGHTS), folder), folder)


def _modern(record: dict[str, Any], metadata: dict[str, Any], source: Path) -> dict[str, Any]:
    """Bring a pre-6 configuration, or one of 6 and later, to one set of keys; what is not understood is refused."""
    record = {_RENAMED.get(key, key): value for key, value in record.items()}
    for key in ("model_name", "hook_name", "context_size", "exclude_special_tokens"):
        record.setdefault(key, metadata.get(key))
    for key in _REFUSED:
        value = record.get(key, metadata.get(key))
        if not neutral(value):
            raise SAEFormatError(
                f"'{source}' has {key}={value!r:.60}: it reads or reconstructs something else than a whole hook; Attlas "
                "reads autoencoders of whole hooks"
            )
    refuse_unknown(record, _READ | SAELENS_HARMLESS | set(_REFUSED), source)
    activation = record.get("activation_fn") or "relu"
    kwargs = section(record, "activation_fn_kwargs", source)
    record["architecture"] = record.get("architecture") or "standard"
    if activation == "topk":
        refuse_unknown(kwargs, ("k",), source)
        record |= {"architecture": "topk", "k": kwargs.get("k", record.get("k"))}
    elif activation != "relu":
        raise SAEFormatError(
            f"'{source}' has activation_fn={activation!r:.60}: '{activation}' is not supported; relu and topk are"
        )
    else:
        refuse_unknown(kwargs, (), source)
    if not isinstance(record["architecture"], str) or record["architecture"] not in _ARCHS:
        raise SAEFormatError(
            f"'{source}': SAELens architecture '{record['architecture']}' is not supported; {', '.join(_ARCHS)} are"
        )
    return record


def _config(record: dict[str, Any], source: Path) -> SAEConfig:
    d_in, d_sae = whole(record, "d_in", source), whole(record, "d_sae", source)
    arch = _ARCHS[record["architecture"]]
    widths = record.get("matryoshka_widths") or ()
    if not isinstance(widths, list | tuple):
        raise SAEFormatError(f"'{source}' has matryoshka_widths={widths!r:.60}; it must be a list of whole numbers")
    dtype = (text(record, "dtype", source) or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise SAEFormatError(f"'{source}' has dtype={record['dtype']!r:.60}; use one of {', '.join(DTYPES)}")
    normalisation = _normalisation(record, source)
    try:
        return SAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            arch=arch,
            k=whole(record, "k", source) if ARCHITECTURES[arch].chooses_k else min(32, d_sae),
            widths=tuple(widths),
            apply_b_dec_to_input=flag(record, "apply_b_dec_to_input", True, source),
            normalisation=normalisation if normalisation in NORMALISATIONS else "none",
            dtype=dtype,
            hook_name=text(record, "hook_name", source),
            model_name=text(record, "model_name", source),
            context_size=record.get("context_size"),
        )
    except ConfigError as error:
        raise SAEFormatError(f"'{source}': {error}") from error


def _normalisation(record: dict[str, Any], source: Path) -> str:
    """normalize_activations under its present name; before 6 it could be true or false."""
    value = record.get("normalize_activations")
    value = (
        {None: "none", False: "none", True: SCALED}.get(value, value) if not isinstance(value, list | dict) else value
    )
    if value not in (*NORMALISATIONS, SCALED, WHITENED):
        raise SAEFormatError(
            f"'{source}' has normalize_activations={value!r:.60}; {', '.join((*NORMALISATIONS, SCALED, WHITENED))} are read"
        )
    return str(value)


def _modern_state(record: dict[str, Any], state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Weights under SAELens's present names, with what Attlas folds folded."""
    state = dict(state)
    source = folder / _CFG
    if "log_threshold" in state:
        state["threshold"] = state.pop("log_threshold").exp()
    if "topk_threshold" in state and "b_enc" in state:
        state["threshold"] = torch.ones_like(state["b_enc"]) * state.pop("topk_threshold").to(state["b_enc"].dtype)
    whole_matrices = {"W_enc", "W_dec", "b_dec"} <= state.keys()
    wanted = (record["d_in"], record["d_sae"])
    if not whole_matrices or tuple(state["W_enc"].shape) != wanted or tuple(state["W_dec"].shape) != wanted[::-1]:
        return state  # `build` names what is wrong
    if "scaling_factor" in state:  # pre-6 fine-tuned scale of each activation
        scale = state.pop("scaling_factor")
        if not flag(record, "finetuning_scaling_factor", False, source) and not torch.equal(
            scale, torch.ones_like(scale)
        ):
            raise SAEFormatError(
                f"'{folder}' has weights scaling_factor and its configuration says finetuning_scaling_factor false; "
                "set it to true, or delete the weights"
            )
        state["W_dec"] = state["W_dec"] * scale.unsqueeze(-1)
    elif flag(record, "finetuning_scaling_factor", False, source):
        raise SAEFormatError(f"'{folder}' has finetuning_scaling_factor=true and lacks the weights scaling_factor")
    rescaled = flag(record, "rescale_acts_by_decoder_norm", False, source) and "b_enc" in state
    if rescaled:
        norm = state["W_dec"].norm(dim=-1).clamp_min(1e-8)
        state["W_enc"], state["b_enc"] = state["W_enc"] * norm, state["b_enc"] * norm
        state["W_dec"] = state["W_dec"] / norm.unsqueeze(-1)
    subtracted = flag(record, "apply_b_dec_to_input", True, source)
    fold_input_maps(state, folder, _normalisation(record, source), b_dec_to_input=subtracted, unit_rows=rescaled)
    return state

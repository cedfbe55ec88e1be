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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attlas.data.files import atomic_path, write_text_atomic
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import NORMALISATIONS, SAEConfig

NAME = "saelens"
FORMAT_VERSION = 1
SAELENS_VERSION = "6.54.12"  # the release whose format this is
_CFG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_ARCHS = {
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
    from attlas import __version__

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
    record = read_json(folder / _CFG)
    state = read_safetensors(folder / _WEIGHTS)
    own = (record.get("metadata") or {}).get("attlas")
    if own:
        if own.get("format", 0) > FORMAT_VERSION:
            raise SAEFormatError(
                f"'{folder / _CFG}' has format {own['format']}, this attlas reads up to {FORMAT_VERSION}; upgrade it"
            )
        return build(SAEConfig.from_json(own["config"]), state, folder)
    record = _modern(record)
    cfg = _config(record, state, folder)
    return build(cfg, _modern_state(record, state), folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or SAEFormatError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SAEFormatError(f"'{path}' does not exist; an SAE folder needs it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SAEFormatError(f"'{path}' is not JSON ({error}); copy or train the SAE again") from error
    if not isinstance(record, dict):
        raise SAEFormatError(f"'{path}' holds a {type(record).__name__}, not an object; it is no SAE configuration")
    return record


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or SAEFormatError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SAEFormatError(f"'{path}' does not exist; an SAE folder needs it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SAEFormatError(f"'{path}' is damaged ({error}); copy or train the SAE again") from error


def build(cfg: SAEConfig, state: dict[str, Tensor], source: Path) -> SAE:
    """An SAE of `cfg` with the weights `state`, under SAELens's names or ours.

    Raises:
        SAEFormatError: weights are missing, unknown, or of another shape.
    """
    sae = SAE.create(cfg)
    ours = {theirs: name for name, theirs in sae.saelens_names.items()}
    state = {ours.get(name, name): tensor for name, tensor in state.items()}
    needed = sae.state_dict()
    missing, unknown = sorted(needed.keys() - state.keys()), sorted(state.keys() - needed.keys())
    if missing or unknown:
        detail = [f"lacks {', '.join(missing)}"] if missing else []
        detail += [f"has {', '.join(unknown)}, which a {cfg.arch} SAE does not"] if unknown else []
        raise SAEFormatError(f"'{source}' {' and '.join(detail)}; it is incomplete or of another architecture")
    for name, tensor in needed.items():
        if state[name].shape != tensor.shape:
            raise SAEFormatError(
                f"'{source}': {name} has shape {list(state[name].shape)} and the configuration says "
                f"{list(tensor.shape)}; the two files do not belong together"
            )
    sae.load_state_dict({name: state[name].to(tensor.dtype) for name, tensor in needed.items()})
    return sae


def _modern(record: dict[str, Any]) -> dict[str, Any]:
    """Bring a pre-6 configuration, or one of 6 and later, to one set of keys."""
    record = {_RENAMED.get(key, key): value for key, value in record.items()}
    metadata = record.get("metadata") or {}
    for key in ("model_name", "hook_name", "context_size"):
        record.setdefault(key, metadata.get(key))
    activation = record.get("activation_fn") or "relu"
    kwargs = record.get("activation_fn_kwargs") or {}
    record.setdefault("architecture", "standard")
    if activation == "topk":
        record |= {"architecture": "topk", "k": kwargs.get("k", record.get("k"))}
    elif activation != "relu":
        raise SAEFormatError(f"activation function '{activation}' is not supported; relu and topk are")
    if record["architecture"] not in _ARCHS:
        raise SAEFormatError(
            f"SAELens architecture '{record['architecture']}' is not supported; {', '.join(_ARCHS)} are"
        )
    return record


def _config(record: dict[str, Any], state: dict[str, Tensor], folder: Path) -> SAEConfig:
    missing = [key for key in ("d_in", "d_sae") if key not in record]
    if missing:
        raise SAEFormatError(f"'{folder / _CFG}' lacks {', '.join(missing)}; it is no SAE configuration")
    arch = _ARCHS[record["architecture"]]
    # other SAELens normalisations were folded into the weights, or are never applied by its inference classes
    normalisation = record.get("normalize_activations")
    dtype = str(record.get("dtype") or "float32").removeprefix("torch.")
    try:
        return SAEConfig(
            d_in=int(record["d_in"]),
            d_sae=int(record["d_sae"]),
            arch=arch,
            k=int(record.get("k") or min(32, int(record["d_sae"]))),
            widths=tuple(record.get("matryoshka_widths") or ()),
            apply_b_dec_to_input=bool(record.get("apply_b_dec_to_input", True)),
            normalisation=normalisation if normalisation in NORMALISATIONS else "none",
            dtype=dtype if hasattr(torch, dtype) else "float32",
            hook_name=record.get("hook_name") or "",
            model_name=record.get("model_name") or "",
            context_size=record.get("context_size"),
        )
    except ConfigError as error:
        raise SAEFormatError(f"'{folder / _CFG}': {error}") from error


def _modern_state(record: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under SAELens's present names, with what Attlas folds folded."""
    state = dict(state)
    if "log_threshold" in state:
        state["threshold"] = state.pop("log_threshold").exp()
    if "topk_threshold" in state and "b_enc" in state:
        state["threshold"] = torch.ones_like(state["b_enc"]) * state.pop("topk_threshold").to(state["b_enc"].dtype)
    if "scaling_factor" in state:  # pre-6 fine-tuned scale of each activation
        state["W_dec"] = state["W_dec"] * state.pop("scaling_factor").unsqueeze(-1)
    if record.get("rescale_acts_by_decoder_norm") and {"W_enc", "W_dec", "b_enc"} <= state.keys():
        norm = state["W_dec"].norm(dim=-1).clamp_min(1e-8)
        state["W_enc"], state["b_enc"] = state["W_enc"] * norm, state["b_enc"] * norm
        state["W_dec"] = state["W_dec"] / norm.unsqueeze(-1)
    return state

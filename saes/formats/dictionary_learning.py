"""dictionary_learning (Marks, Karvonen, Mueller): `ae.pt` (a state_dict) and `config.json`.

`config.json` names the class under trainer.dict_class; each class has its own names and orientation of the weights, in
the table below. submodule_name says the hook ("resid_post_layer_5"; attlas.saes.formats.places). Attlas adds its own
configuration under the key "attlas". Layout: github.com/saprmarks/dictionary_learning, `dictionary.py`, `utils.py`
(load_dictionary) and `trainers/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.data.files import atomic_path, write_text_atomic
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.formats.fields import (
    DICTIONARY_BUFFER,
    DICTIONARY_HARMLESS,
    refuse_unknown,
    section,
    text,
    whole,
    words,
)
from attlas.saes.formats.files import build, read_json
from attlas.saes.formats.pickled import read_state, take, transposed
from attlas.saes.formats.places import hook_of

NAME = "dictionary_learning"


@dataclass(frozen=True)
class _Class:
    """How one class of theirs stores an architecture of ours."""

    arch: str
    names: dict[str, str]
    linear: tuple[str, ...] = ("W_enc", "W_dec")  # kept as nn.Linear, so transposed
    b_dec_to_input: bool = True


_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
_GATED = {
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
    "b_dec": "decoder_bias",
    "b_enc": "gate_bias",
    "b_mag": "mag_bias",
    "r_mag": "r_mag",
}
_CLASSES = {
    "AutoEncoder": _Class("standard", {**_LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": _Class("standard", {**_LINEAR, "b_dec": "decoder.bias"}, b_dec_to_input=False),
    "GatedAutoEncoder": _Class("gated", _GATED),
    "AutoEncoderTopK": _Class("topk", {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": _Class("batchtopk", {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": _Class("matryoshka", _PLAIN, linear=()),
    "JumpReluAutoEncoder": _Class("jumprelu", _PLAIN, linear=(), b_dec_to_input=False),
}
_READ = words("dict_class activation_dim dict_size k lm_name submodule_name")
# Buffers in the state_dict beside the weights: k is read, TopK's running threshold is not used by its encode.
_BUFFERS = {"topk": ("k", "threshold"), "batchtopk": ("k",), "matryoshka": ("k", "group_sizes")}
_CLASS_OF = {c.arch: name for name, c in _CLASSES.items() if name != "AutoEncoderNew"}


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "ae.pt").is_file()


def load(folder: Path) -> SAE:
    """Read `ae.pt` and `config.json`.

    Raises:
        SAEFormatError: a file is missing or refused, the class is unknown, or weights are missing.
    """
    source = folder / "config.json"
    record = read_json(source)
    trainer, buffer = section(record, "trainer", source), section(record, "buffer", source)
    class_name = trainer.get("dict_class")
    if not isinstance(class_name, str) or class_name not in _CLASSES:
        raise SAEFormatError(f"'{source}' has trainer.dict_class {class_name!r:.60}; supported: {', '.join(_CLASSES)}")
    refuse_unknown(record, ("trainer", "buffer", "attlas"), source)
    refuse_unknown(trainer, _READ | DICTIONARY_HARMLESS, source)
    refuse_unknown(buffer, DICTIONARY_BUFFER | {"ctx_len"}, source)
    layout = _CLASSES[class_name]
    raw = read_state(folder / "ae.pt")
    state = transposed(take(raw, layout.names, folder, _BUFFERS.get(layout.arch, ())), *layout.linear)
    if state["W_enc"].ndim != 2:
        raise SAEFormatError(f"'{folder / 'ae.pt'}': the encoder has shape {list(state['W_enc'].shape)}, want a matrix")
    d_in, d_sae = state["W_enc"].shape
    for key, found in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, found) != found:
            raise SAEFormatError(f"'{source}' has {key}={trainer[key]!r:.60} and the weights {found}")
    if "threshold" in state:
        state["threshold"] = state["threshold"].expand(d_sae).clone()
    own = section(record, "attlas", source)
    try:
        cfg = SAEConfig.from_json(own) if own else _config(layout, trainer, buffer, raw, d_in, d_sae, source)
    except ConfigError as error:
        raise SAEFormatError(f"'{source}': {error}") from error
    return build(cfg, state, folder)


def _config(
    layout: _Class,
    trainer: dict[str, Any],
    buffer: dict[str, Any],
    raw: dict[str, Tensor],
    d_in: int,
    d_sae: int,
    source: Path,
) -> SAEConfig:
    k = min(32, d_sae)
    if layout.arch in _BUFFERS:
        k = int(raw["k"]) if "k" in raw and raw["k"].numel() == 1 else whole(trainer, "k", source)
    sizes = raw.get("group_sizes")
    if sizes is not None and sizes.ndim != 1:
        raise SAEFormatError(f"'{source.parent}': group_sizes has shape {list(sizes.shape)}, want a list")
    model, said = text(trainer, "lm_name", source), text(trainer, "submodule_name", source)
    return SAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        arch=layout.arch,
        k=k,
        widths=() if sizes is None else tuple(int(n) for n in sizes.cumsum(0)),
        apply_b_dec_to_input=layout.b_dec_to_input,
        model_name=model,
        hook_name=hook_of(said, model) or said,
        context_size=buffer.get("ctx_len"),
    )


@torch.no_grad()
def _foreign_state(sae: SAE, layout: _Class) -> dict[str, Tensor]:
    """Weights under their names, with what their class cannot say folded into biases."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in sae.state_dict().items()}
    if sae.cfg.apply_b_dec_to_input != layout.b_dec_to_input:
        shift = state["b_dec"] @ state["W_enc"]
        sign = -1.0 if sae.cfg.apply_b_dec_to_input else 1.0
        state["b_enc"] += sign * shift
        if "b_mag" in state:
            state["b_mag"] += sign * shift * state["r_mag"].exp()
    named = {layout.names[name]: t.contiguous() for name, t in transposed(state, *layout.linear).items()}
    if layout.arch in ("topk", "batchtopk", "matryoshka"):
        named["k"] = torch.tensor(sae.cfg.k, dtype=torch.int)
        threshold = state["threshold"][0] if "threshold" in state else torch.tensor(-1.0)
        named["threshold"] = threshold.float()
    if layout.arch == "matryoshka":
        widths = torch.tensor(sae.widths)
        named["group_sizes"] = widths.diff(prepend=widths.new_zeros(1))
    return named


def save(sae: SAE, folder: Path) -> Path:
    """Write a folder that dictionary_learning's `load_dictionary` reads.

    Raises:
        SAEFormatError: the SAE normalises its input, which the library cannot say.
    """
    cfg = sae.cfg
    if cfg.normalisation != "none":
        raise SAEFormatError(
            f"dictionary_learning cannot hold normalisation '{cfg.normalisation}'; export it to saelens instead"
        )
    if cfg.arch not in _CLASS_OF:
        raise SAEFormatError(f"dictionary_learning has no class for '{cfg.arch}'; export it to saelens instead")
    class_name = _CLASS_OF[cfg.arch]
    layout = _CLASSES[class_name]
    layer = next((int(part) for part in cfg.hook_name.split(".") if part.isdigit()), None)
    record = {
        "trainer": {
            "dict_class": class_name,
            "activation_dim": cfg.d_in,
            "dict_size": cfg.d_sae,
            "k": cfg.k,
            "lm_name": cfg.model_name,
            "layer": layer,
            "submodule_name": cfg.hook_name,
        },
        "buffer": {"ctx_len": cfg.context_size},
    }
    if cfg.apply_b_dec_to_input == layout.b_dec_to_input:
        record["attlas"] = cfg.to_json()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "ae.pt") as temporary:
        torch.save(_foreign_state(sae, layout), temporary)
    write_text_atomic(folder / "config.json", json.dumps(record, indent=1) + "\n")
    return folder

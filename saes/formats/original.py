"""The first attention-output SAEs (Kissane et al. 2024): `NAME.pt` with W_enc, W_dec, b_enc, b_dec; `NAME_cfg.json`.

They are ReLU SAEs: f = ReLU((x − b_dec)·W_enc + b_enc), x̂ = f·W_dec + b_dec. The configuration has act_name, act_size and
dict_size; without the file the sizes come from the weights, and the hook and the model from a name such as
`gpt2-small_L5_Hcat_z_lr1.20e-03_….pt`. Give the `.pt` file, or a folder that holds one. Layout:
hf.co/ckkissane/attn-saes-gpt2-small-all-layers, and SAELens 6.54 (connor_rob_hook_z).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.data.files import atomic_path, write_text_atomic
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.formats.fields import ORIGINAL_HARMLESS, number, refuse_unknown, text, words
from attlas.saes.formats.files import build, read_json
from attlas.saes.formats.pickled import read_state, take

NAME = "original"
_NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_FILE = re.compile(r"^(.+)_L(\d+)_Hcat_z_")
_READ = words("act_name act_size dict_size l1_coeff model_name seq_len head concat_heads")


def _weights(path: Path) -> Path | None:
    if path.is_file() and path.suffix == ".pt":
        return path
    found = sorted(path.glob("*.pt")) if path.is_dir() else []
    return found[0] if len(found) == 1 and found[0].name != "ae.pt" else None


def detect(path: Path) -> bool:
    return _weights(path) is not None


def load(path: Path) -> SAE:
    """Read the `.pt` file and, when it is there, its configuration.

    Raises:
        SAEFormatError: the file needs pickle, or weights are missing.
    """
    weights = _weights(path)
    if weights is None:
        raise SAEFormatError(f"'{path}' is no .pt file, nor a folder with exactly one")
    state = take(read_state(weights), _NAMES, weights)
    config = weights.with_name(f"{weights.stem}_cfg.json")
    record: dict[str, Any] = read_json(config) if config.is_file() else {}
    try:
        return build(_config(record, state, config), state, weights)
    except ConfigError as error:
        raise SAEFormatError(f"'{config}': {error}") from error


def _config(record: dict[str, Any], state: dict[str, Tensor], source: Path) -> SAEConfig:
    refuse_unknown(record, _READ | ORIGINAL_HARMLESS, source)
    if record.get("concat_heads") is False or record.get("head", "cat") != "cat":
        raise SAEFormatError(
            f"'{source}' has head={record.get('head')!r:.60}, concat_heads={record.get('concat_heads')!r:.60}: an SAE of "
            "one head; Attlas reads SAEs of all heads, concatenated"
        )
    if state["W_enc"].ndim != 2:
        raise SAEFormatError(f"'{source}': W_enc has shape {list(state['W_enc'].shape)}, want [d_in, d_sae]")
    d_in, d_sae = state["W_enc"].shape
    for key, found in (("act_size", d_in), ("dict_size", d_sae)):
        if record.get(key, found) != found:
            raise SAEFormatError(f"'{source}' has {key}={record[key]!r:.60} and W_enc has shape [{d_in}, {d_sae}]")
    named = _FILE.match(source.name)
    model, hook = (named.group(1), f"blocks.{named.group(2)}.attn.hook_z") if named else ("", "")
    dtype = str(state["W_enc"].dtype).removeprefix("torch.")
    return SAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        arch="standard",
        k=min(32, d_sae),
        sparsity=number(record, "l1_coeff", 1.0, source),
        hook_name=text(record, "act_name", source) or hook,
        model_name=text(record, "model_name", source) or model,
        context_size=record.get("seq_len"),
        dtype=dtype if dtype != "float64" else "float32",
    )


def save(sae: SAE, path: Path) -> Path:
    """Write `sae.pt` and `sae_cfg.json` into the folder `path`.

    Raises:
        SAEFormatError: the SAE is not a plain ReLU one.
    """
    cfg = sae.cfg
    if cfg.arch != "standard" or cfg.normalisation != "none" or not cfg.apply_b_dec_to_input:
        raise SAEFormatError(f"the original format holds plain ReLU SAEs, not '{cfg.arch}'; export to saelens instead")
    path.mkdir(parents=True, exist_ok=True)
    with atomic_path(path / "sae.pt") as temporary:
        torch.save({name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}, temporary)
    record = {
        "act_name": cfg.hook_name,
        "act_size": cfg.d_in,
        "dict_size": cfg.d_sae,
        "l1_coeff": cfg.sparsity,
        "model_name": cfg.model_name,
        "seq_len": cfg.context_size,
        "enc_dtype": "fp32",
    }
    write_text_atomic(path / "sae_cfg.json", json.dumps(record, indent=1) + "\n")
    return path

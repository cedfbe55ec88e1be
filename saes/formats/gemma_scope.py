"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) and Gemma Scope 2: JumpReLU SAEs of Gemma 2 and Gemma 3.

- Gemma Scope: `params.npz` with W_enc [D,F], W_dec [F,D], b_enc, b_dec and threshold [F]; the hook and the model are said by
  names of the repository and folders (`gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_71`).
- Gemma Scope 2: `params.safetensors` with w_enc, w_dec and the rest; `hf_hook_point_in` of its `config.json` says the hook.

f = ReLU(π)·1[π > threshold],  π = x·W_enc + b_enc,  x̂ = f·W_dec + b_dec: b_dec is *not* subtracted before encoding, and
activations are taken as they come. Attention SAEs (`-att`, `attn_out`) read the heads' outputs before W_O: `hook_z`.
Layouts: hf.co/google/gemma-scope and hf.co/google/gemma-scope-2, the tutorial that the first links, and SAELens 6.54
(`loading/pretrained_sae_loaders.py`, gemma_2 and gemma_3). Read only. Transcoders and SAEs of the embedding are refused.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.errors import SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.formats.fields import refuse_unknown, text, words
from attlas.saes.formats.files import build, read_json, read_safetensors
from attlas.saes.formats.pickled import take
from attlas.saes.formats.places import folders, hook_of

NAME = "gemma-scope"
_FILES = ("params.npz", "params.safetensors")
_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_KINDS = {
    "att": "attn.hook_z",
    "attn_out": "attn.hook_z",
    "mlp": "hook_mlp_out",
    "mlp_out": "hook_mlp_out",
    "res": "hook_resid_post",
    "resid_post": "hook_resid_post",
}
_REPOSITORY = re.compile(r"^gemma-scope-(2-)?(\d+[bm])-(pt|it)(?:-(att|mlp|res|transcoders))?$")
_READ = words("architecture model_name hf_hook_point_in hf_hook_point_out affine_connection width l0 type")


def _weights(path: Path) -> Path | None:
    """The file itself, or the one in a folder."""
    found = [path] if path.name in _FILES else [path / name for name in _FILES]
    return next((file for file in found if file.is_file()), None)


def detect(path: Path) -> bool:
    return _weights(path) is not None


def load(path: Path) -> SAE:
    """Read the weights, and the hook and the model from where they are said.

    Raises:
        SAEFormatError: weights are missing, surplus or damaged, or it is a transcoder or an SAE of the embedding.
    """
    file = _weights(path)
    if file is None:
        raise SAEFormatError(f"'{path}' holds neither {' nor '.join(_FILES)}; give a folder of Gemma Scope")
    raw = _read_npz(file) if file.suffix == ".npz" else read_safetensors(file)
    raw = {"W" + name[1:] if name.startswith("w_") else name: tensor.float() for name, tensor in raw.items()}
    config = file.with_name("config.json")
    record = read_json(config) if config.is_file() and file.suffix != ".npz" else {}
    hook, model = _place(file, record, config)
    state = take(raw, {name: name for name in _WEIGHTS}, file)
    if state["W_enc"].ndim != 2 or state["W_dec"].shape != state["W_enc"].shape[::-1]:
        raise SAEFormatError(
            f"'{file}': W_enc has shape {list(state['W_enc'].shape)} and W_dec {list(state['W_dec'].shape)}; an "
            "autoencoder's are each other's transpose (a transcoder's are not), and Attlas reads autoencoders"
        )
    d_in, d_sae = state["W_enc"].shape
    cfg = SAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        arch="jumprelu",
        k=min(32, d_sae),
        apply_b_dec_to_input=False,
        hook_name=hook,
        model_name=model,
        context_size=1024,
    )
    return build(cfg, state, file)


def _read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of numbers; an array of Python objects would have to be unpickled and is refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SAEFormatError(f"'{path}' is damaged or holds no plain arrays ({reason}); copy it again") from error


def _place(file: Path, record: dict[str, Any], config: Path) -> tuple[str, str]:
    """(hook, model), "" where nothing says it."""
    names = folders(file)[1:]
    repository = next((found for name in names if (found := _REPOSITORY.match(name))), None)
    model = text(record, "model_name", config).replace("gemma-v3", "gemma-3")
    if repository is not None and not model:
        second, size, tuning, _ = repository.groups()
        model = f"google/gemma-3-{size}-{tuning}" if second else f"google/gemma-2-{size}{'-it' * (tuning == 'it')}"
    said = text(record, "hf_hook_point_in", config)
    if record:
        refuse_unknown(record, _READ, config)
        if record.get("architecture", "jump_relu") != "jump_relu":
            raise SAEFormatError(f"'{config}' has architecture={record['architecture']!r:.60}; jump_relu is read")
    if text(record, "hf_hook_point_out", config) not in ("", said) or any(
        "transcoder" in n or "clt" in n for n in names
    ):
        raise SAEFormatError(
            f"'{file.parent}' is a transcoder (its output is not its input); Attlas reads autoencoders"
        )
    if "embedding" in names:
        raise SAEFormatError(
            f"'{file.parent}' was trained on the embedding before Gemma's scale √d, where no hook is; use a layer's SAE"
        )
    if said.endswith("o_proj.input"):
        return hook_of(said), model
    layer = next((found.group(1) for name in names if (found := re.match(r"layer_(\d+)(?:_|$)", name))), None)
    kind = repository.group(4) if repository is not None else None
    kind = kind or next((name.removesuffix("_all") for name in names if name.removesuffix("_all") in _KINDS), None)
    return (f"blocks.{layer}.{_KINDS[kind]}" if layer is not None and kind in _KINDS else ""), model

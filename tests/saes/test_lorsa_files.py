"""Files of Lorsas in OpenMOSS's layout: written, read, scaled, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attlas.errors import AttlasError, SAEFormatError
from attlas.saes import LorsaConfig, load_lorsa, load_sae, save_lorsa
from attlas.saes.lorsa.config import LorsaRotary

from .lorsas import SHAPES, by_loops, drawn

NAMES = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_D")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_files_hold_it(shape: dict[str, Any], tmp_path: Path) -> None:
    lorsa = drawn(hook_in="blocks.1.ln1.hook_normalized", hook_out="blocks.1.hook_attn_out", model_name="m", **shape)
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    again = load_lorsa(save_lorsa(lorsa, tmp_path / "lorsa"))
    torch.testing.assert_close(again(x), lorsa(x), atol=1e-12, rtol=1e-10)
    assert again.cfg.to_json() | {"attn_scale": None, "k": 0} == lorsa.cfg.to_json() | {"attn_scale": None, "k": 0}
    assert LorsaConfig.from_json(json.loads(json.dumps(again.cfg.to_json()))) == again.cfg
    with pytest.raises(SAEFormatError, match="stands for an attention layer"):
        load_sae(tmp_path / "lorsa")


def test_dataset_wise_scales_are_read_as_their_formula_says(tmp_path: Path) -> None:
    """A file in the published layout: ŷ = Lorsa(s_in·x) / s_out with s = √D / the average norm of either hook."""
    hooks = {"hook_in": "blocks.1.ln1.hook_normalized", "hook_out": "blocks.1.hook_attn_out"}
    lorsa, x = drawn(rotary=LorsaRotary(4), **hooks), torch.randn(1, 5, 6, dtype=torch.float64)
    folder = save_lorsa(lorsa, tmp_path / "lorsa")
    (folder / "attlas.json").unlink()
    norms = {"blocks.1.ln1.hook_normalized": 4.0, "blocks.1.hook_attn_out": 0.5}
    weights = load_file(folder / "sae_weights.safetensors")
    assert set(weights) == {*NAMES, "mask", "IGNORE", "rotary_sin", "rotary_cos"}
    scaled = {f"dataset_average_activation_norm.{hook}": torch.tensor(norm) for hook, norm in norms.items()}
    save_file(weights | scaled, folder / "sae_weights.safetensors")
    record = json.loads((folder / "config.json").read_text()) | {"norm_activation": "dataset-wise", "attn_scale": None}
    (folder / "config.json").write_text(json.dumps(record))
    s_in, s_out = (math.sqrt(6) / norm for norm in norms.values())
    expected = by_loops(lorsa, s_in * x[0])[2] / s_out
    torch.testing.assert_close(load_lorsa(folder)(x)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'"),
        ({"norm_activation": "token-wise"}, "norm_activation='token-wise'"),
        ({"rotary_scale": 2}, "rotary_scale=2"),
        ({"n_qk_heads": 3}, "do not divide"),
        ({"d_qk_head": 5}, "of shape"),
        ({"use_post_qk_ln": True, "normalization_type": "LN"}, "normalization_type='LN'"),
        ({"gating": 3}, "gating=3"),
        ({"sae_type": "sae"}, "sae_type='sae'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_files_that_say_something_else_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = save_lorsa(drawn(), tmp_path / "lorsa")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(SAEFormatError, match=said):
        load_lorsa(folder)


def test_a_damaged_configuration_is_named() -> None:
    good = drawn().cfg.to_json()
    for change in (
        {"k": 9},
        {"d_model": True},
        {"activation": "gelu"},
        {"rotary": {"dim": 3}},
        {"wrong": 1},
        {"n_ctx": None},
    ):
        with pytest.raises(AttlasError):
            LorsaConfig.from_json({**good, **change})

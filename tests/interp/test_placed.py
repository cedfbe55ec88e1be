"""Models whose weights are not simply there: on several devices, on disk, packed in few bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.errors import UnsupportedModelError
from attlas.interp import load_model


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "fp8"}, r"\(fp8\)"),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(EMBEDDED_DIR / "gpt2-mini", folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(UnsupportedModelError, match=f"'packed' is quantised.*{says}"):
        load_model(str(folder), device="cpu")


def test_packed_modules_are_refused() -> None:
    hf = load_model("gpt2-mini", device="cpu").hf
    packed = type("Linear4bit", (torch.nn.Module,), {})()
    hf.transformer.h[0].mlp.c_fc = packed
    with pytest.raises(UnsupportedModelError, match="quantised \\(Linear4bit\\)"):
        load_model(hf)


def test_a_device_map_is_captured(tmp_path: Path) -> None:
    """Accelerate's hooks, layer by layer, as device_map="auto" puts them; weights on disk are refused."""
    accelerate = pytest.importorskip("accelerate")
    plain = load_model("gpt2-mini", device="cpu")
    tokens = torch.randint(3, 4000, (2, 16))
    hook = "blocks.2.attn.hook_z"
    expected = plain.capture(tokens, [hook])[hook]
    parts = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    layers = {f"transformer.h.{layer}": "cpu" for layer in range(4)}
    hf = accelerate.dispatch_model(load_model("gpt2-mini", device="cpu").hf, parts | layers, force_hooks=True)
    assert hasattr(hf.transformer.h[1], "_hf_hook")
    mapped = load_model(hf)
    torch.testing.assert_close(mapped.capture(tokens, [hook])[hook], expected)

    away = accelerate.disk_offload(load_model("gpt2-mini", device="cpu").hf, str(tmp_path), execution_device="cpu")
    with pytest.raises(UnsupportedModelError, match="on disk until they are needed"):
        load_model(away)

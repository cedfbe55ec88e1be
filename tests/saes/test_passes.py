"""What a pass would take: against the tensors and files of a real one, and by hand for an 8B model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attlas.cli import main
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes.scaling.passes import plan_pass
from attlas.saes.scaling.shapes import model_shape

Z = ("blocks.*.attn.hook_z",)


def test_weights_and_bytes_written_are_those_of_a_real_pass(
    gpt2_mini: HookedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan_pass("gpt2-mini", hooks=Z, n_tokens=512, seq_len=64, batch=4)
    assert found.memory["weights"] == sum(p.numel() * p.element_size() for p in gpt2_mini.hf.parameters())
    assert found.memory["activations"] == 4 * 64 * 4 * 4 * 192  # tokens, float32, layers, width
    argv = ["capture", "--hooks", *Z, "--n-tokens", "512", "--seq-len", "64", "--skip-positions", "0", "--json"]
    assert main([*argv, "--to", str(tmp_path / "a")]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == pytest.approx(found.disk, rel=0.01)  # headers besides
    assert main([*argv, "--to", str(tmp_path / "b"), "--plan"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["disk"] == found.disk
    assert not (tmp_path / "b").exists()


def test_all_layers_of_an_8b_model_are_counted() -> None:
    shape = model_shape("llama-3.1-8b")
    matrices = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    assert shape.layer_parameters == matrices
    found = plan_pass("llama-3.1-8b", hooks=Z, n_tokens=10**6, seq_len=1024, batch=8, dtype="bfloat16")
    assert found.n_layers == 32
    assert found.memory["weights"] == 2 * (32 * matrices + 2 * 128_256 * 4096)
    assert found.disk == 10**6 * 32 * 4096 * 2
    assert found.flops == 10**6 * 32 * (2 * matrices + 2 * 1024 * 4096)
    first = plan_pass("llama-3.1-8b", hooks=("blocks.0.attn.hook_z",), n_tokens=10**6, seq_len=1024, batch=8)
    assert first.n_layers == 1  # the pass stops there, and the weights are all loaded
    assert first.memory["weights"] == 2 * found.memory["weights"]
    heads = plan_pass("llama-3.1-8b", hooks=None, n_tokens=10**6, seq_len=1024, batch=8, dtype="bfloat16")
    assert heads.flops > found.flops
    assert heads.disk == 0


def test_what_does_not_fit_is_said() -> None:
    whole = {"hooks": Z, "n_tokens": 10**6, "seq_len": 1024}
    assert plan_pass("llama-3.1-8b", batch=8, dtype="bfloat16", device="rtx4090", **whole).advice is None
    assert "bfloat16" in str(plan_pass("llama-3.1-8b", batch=8, device="rtx4090", **whole).advice)
    assert "--batch-size" in str(
        plan_pass("llama-3.1-8b", batch=64, dtype="bfloat16", device="rtx4090", **whole).advice
    )
    for change, match in (({"n_tokens": 0}, "n_tokens 0"), ({"dtype": "int8"}, "'int8'"), ({"device": "h10"}, "h100")):
        with pytest.raises(ConfigError, match=match):
            plan_pass("llama-3.1-8b", **{"batch": 1, **whole, **change})


def test_entropy_heads_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["entropy", "heads", "--plan", "--model", "llama-3.1-8b", "--dtype", "bfloat16", "--gpu", "a100-40"]
    assert main([*argv, "-w", str(tmp_path / "w"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["fits"], found["device"]) == (32, True, "a100-40")
    assert not (tmp_path / "w").exists()

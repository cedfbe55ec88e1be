"""Entropy collapse in small."""

from __future__ import annotations

import json

import pytest

from attlas.analyses.stability.collapse import CollapseConfig, collapse_demo
from attlas.cli import main
from attlas.errors import ConfigError


def test_collapse_in_few_steps(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """A gain of 8 on queries and keys sharpens attention from the start; σReparam takes the gain out again."""
    result = collapse_demo(CollapseConfig(models=("vit",), seeds=(0,), vit_steps=40, qk_gain=8.0, every=10))
    runs = {row["method"]: row for row in result.runs.to_pylist()}
    assert len(runs) == 2
    baseline = next(row for name, row in runs.items() if "sigma" not in name.lower())
    guarded = next(row for name, row in runs.items() if "sigma" in name.lower())
    assert baseline["final_normalized"] < guarded["final_normalized"]
    curves = result.curves.to_pandas()
    assert set(curves.method) == set(runs)
    where = str(tmp_path_factory.mktemp("w"))
    small = ["--seeds", "0", "--demo-models", "lm", "--demo-steps", "3", "--workspace", where, "--json"]
    assert main(["entropy", "collapse-demo", *small]) == 0
    assert json.loads(capsys.readouterr().out)["run"].startswith("collapse")
    with pytest.raises(ConfigError, match="must be among"):
        CollapseConfig(models=("cnn",))

"""benchmarks/gpu_table.py runs through on a bare machine: here with the device stubbed by the CPU, and tiny shapes."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from ..packaging.import_graph import ROOT


def test_every_part_runs_and_names_its_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_table

    tiny = {
        "DEVICE": "cpu", "ENCODE_SHAPES": ((16, 64),), "ENCODE_ROWS": 64, "STEP_SHAPES": ((8, 48, 4, 16),),
        "CHECK_SHAPE": (8, 48, 4, 16), "STATS_SHAPES": ((16, 16),), "peaks": dict, "rooms": lambda: None,
    }  # fmt: skip
    for name, value in tiny.items():
        monkeypatch.setattr(gpu_table, name, value)

    def timed(run: Any, repeats: int = 1) -> dict[str, float]:
        run()
        return {"ms": 1.0, "low": 1.0, "high": 1.0, "peak_mb": 0.0}

    monkeypatch.setattr(gpu_table, "timed", timed)
    monkeypatch.setattr(gpu_table, "peers", lambda *shape: {"SAELens": lambda: torch.ones(2, 2) @ torch.ones(2, 2)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "stub")
    assert gpu_table.main() == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert not [row for row in rows if "error" in row or "left_out" in row]
    ours = {(row["arch"], row["precision"]) for row in rows if "arch" in row}
    assert ours >= {(arch, p) for arch in gpu_table.ARCHITECTURES for p in ("float32", "tf32", "bfloat16")}
    against = [row["job"] for row in rows if row.get("peer") == "SAELens"]
    assert {job.split("SAELens ")[1] for job in against} == {"float32", "TF32", "bfloat16 autocast"}
    assert sum(row["job"].startswith("correct") for row in rows) == 36

    monkeypatch.setattr(gpu_table, "MINUTES", -1.0)
    gpu_table.main()
    assert all("left_out" in row for row in json.loads(capsys.readouterr().out)["rows"])
    sys.modules.pop("gpu_table")

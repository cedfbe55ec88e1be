"""`attlas vit` and what it measures besides heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attlas.cli import main
from attlas.data.workspace import Workspace

SMALL = {
    "heads": ["--ablations", "zero", "--n-bootstrap", "20"],
    "pruning": ["--max-heads", "2", "--n-candidates", "2"],
    "tokens": ["--remove-at", "1"],
    "patterns": ["--n-maps", "120", "--n-clusters", "3", "--n-latent", "2"],
}
TABLES = {
    "heads": ("vit", {"importance", "importance_by_class", "strength", "rings", "trend", "agreement"}),
    "pruning": ("vit_pruning", {"pruning_curve"}),
    "tokens": ("vit_tokens", {"column_mass", "removal", "rollout"}),
    "patterns": ("vit_patterns", {"patterns", "clusters", "head_clusters", "pattern_quality"}),
}


@pytest.mark.parametrize("what", SMALL)
def test_each_measure_is_one_run(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["vit", what, "-w", str(tmp_path / "w"), "--n-images", "16", "--batch-size", "16", "--json", *SMALL[what]]
    assert main(argv) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    (run,) = Workspace(tmp_path / "w").runs()
    kind, tables = TABLES[what]
    assert (run.id, run.kind) == (told["run"], kind)
    assert tables <= set(run.tables)
    assert {k: v for k, v in told.items() if k != "run"} == json.loads(json.dumps(run.summary))


@pytest.mark.parametrize("what", SMALL)
def test_the_table_for_people(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["vit", what, "-w", str(tmp_path / "w"), "--n-images", "12", "--batch-size", "16", *SMALL[what]]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "vit-mini" in captured.out + captured.err
    assert "wrote run" in captured.out + captured.err


@pytest.mark.parametrize("measure", ["importance", "strength"])
def test_one_measure_alone(measure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["vit", "-w", str(tmp_path / "w"), "--n-images", "8", "--measure", measure, "--ablations", "mean"]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert ("reach, px" in told.out + told.err) == (measure == "strength")
    (run,) = Workspace(tmp_path / "w").runs()
    assert ("importance" in run.tables, "strength" in run.tables) == (measure == "importance", measure == "strength")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tokens", "--remove-at", "9"], "layers 0–3"),
        (["patterns", "--n-maps", "3"], "n_maps 3"),
        (["patterns", "--n-clusters", "1"], "n_clusters 1"),
        (["pruning", "--n-images", "1"], "n_search"),
        (["heads", "--ablations", "none"], "ablations"),
        (["heads", "--measure", "beauty"], "measure"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vit", *argv, "-w", str(tmp_path / "w"), *([] if "--n-images" in argv else ["--n-images", "8"])]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("attlas vit: ")
    assert message in last

"""`attlas circuit`: each sub-verb's JSON, files, and refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attlas.analyses.circuits.graph import load_json
from attlas.cli import main
from attlas.data.workspace import Workspace

SMALL = ["--task", "induction", "--n-prompts", "4", "--min-accuracy", "0"]


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    status = main(["circuit", *argv])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out.startswith("{") else {}, captured.err


def test_tasks_are_listed_and_scored(capsys: pytest.CaptureFixture[str]) -> None:
    status, found, _ = _run(capsys, "tasks", "--json")
    assert status == 0
    assert "ioi" in found["tasks"]
    status, found, _ = _run(capsys, "tasks", "--task", "induction-natural", "--n-prompts", "8", "--json")
    assert status == 0
    assert 0.7 <= found["scores"]["induction-natural"]["accuracy"] <= 1


def test_every_sub_verb_writes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-w", str(tmp_path / "w"), "--json"]
    status, patch, err = _run(capsys, "patch", *SMALL, "--by", "head", *where)
    assert status == 0, err
    assert len(patch["rows"]) == 24
    status, dla, err = _run(capsys, "dla", *SMALL, *where)
    assert status == 0, err
    assert sum(row["contribution"] for row in dla["rows"]) == pytest.approx(dla["logit_difference"], abs=1e-3)
    out = tmp_path / "g.json"
    status, trace, err = _run(capsys, "trace", *SMALL, "--row", "3", "--faithful", "--out", str(out), *where)
    assert status == 0, err
    assert trace["gap"] < 1e-4
    assert trace["faithfulness"]["n_prompts"] == 4
    graph = load_json(out)
    assert graph.nodes[0].value == trace["value"]
    assert any(edge.via == "key" for edge in graph.edges)
    status, qk, err = _run(capsys, "qk", *SMALL, "--layer", "3", "--head", "0", *where)
    assert status == 0, err
    assert qk["gap"] < 1e-4
    runs = {run.id for run in Workspace(tmp_path / "w").runs()}
    assert {patch["run"], dla["run"], trace["run"], qk["run"]} <= runs


def test_a_head_is_chosen_by_what_it_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*SMALL[:2], "--n-prompts", "1", "--min-accuracy", "0", "-w", str(tmp_path / "w"), "--json"]
    _, dla, _ = _run(capsys, "dla", *asked)
    coefficients = {(r["layer"], r["head"]): r["contribution"] for r in dla["rows"] if r["kind"] == "head"}
    for given in ([], ["--layer", "1"], ["--head", "2"]):
        status, qk, err = _run(capsys, "qk", *asked, *given)
        assert status == 0, err
        able = [at for at in coefficients if not given or at["--head" in given] == int(given[1])]
        best = max(able, key=lambda at: coefficients[at])
        assert (qk["layer"], qk["head"]) == best
        assert f"head {best[0]}.{best[1]}: of those" in err


def test_a_prompt_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "g.ct.json"
    argv = ["--prompt", " the man went to the", "-w", str(tmp_path / "w"), "--out", str(out), "--json"]
    status, found, err = _run(capsys, "trace", *argv)
    assert status == 0, err
    assert found["target"] == "logits"
    assert json.loads(out.read_text())["metadata"]["slug"] == "g"


def test_a_graph_that_is_too_large_says_so_in_one_line(tmp_path: Path) -> None:
    argv = ["circuit", "trace", "--prompt", " the man went to the", "--max-nodes", "8", "-w", str(tmp_path / "w")]
    code = f"import sys; from attlas.cli import main; sys.exit(main({argv!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "attlas circuit: warning: the graph reached 8 nodes" in done.stderr
    assert "contextlib" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trace", "--feature", "2/3", "--n-prompts", "2", "--min-accuracy", "0"], "layer/feature@position"),
        (["trace", "--feature", "2/3@1", "--n-prompts", "2", "--min-accuracy", "0"], "no autoencoder"),
        (["trace", "--row", "9", "--n-prompts", "2", "--min-accuracy", "0"], "prompts 0–1"),
        (["trace", "--to", "x.png"], "--to 'x.png' should end in .json, .graphml"),
        (["trace", "--prompt", " the man", "--faithful"], "--corrupted"),
        (["qk", *SMALL, "--layer", "7"], "0–3"),
        (["qk", *SMALL, "--head", "7"], "0–5"),
        (["patch", "--answer", " a"], "belongs to --prompt"),
        (["patch", "--task", "docstring"], "cannot do 'docstring'"),
        (["patch", "--prompt", " the man", "--corrupted", " extraordinary things happened"], "equal lengths"),
        (["patch", "--prompt", " the man"], "would change nothing"),
        (["trace", "--model", "vit-mini", "--prompt", " the man"], "give a language model"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = _run(capsys, *argv, "-w", str(tmp_path / "w"))
    assert status == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err

"""`attlas explain` as a person runs it: by an endpoint on the loopback, from a workspace, into the notes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attlas.analyses.features import FeaturesConfig, features
from attlas.analyses.heads import HeadsConfig, head_atlas
from attlas.cli import main
from attlas.data.notes import NoteBook
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import TrainConfig, train_sae

from ..analyses.explain.served import Served, serving

HOOK = "blocks.2.attn.hook_z"
FEW = ["--n-tokens", "2048", "--seq-len", "64", "--context", "8", "--n-test", "8", "--n-shown", "3"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: Any, gpt2_mini: HookedModel, val_tokens: TokenDataset) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("explained") / "w"
    small = TrainConfig(hooks=(HOOK,), n_tokens=512, d_sae=32, k=4, batch_size=128, buffer_tokens=512, capture_batch=4)
    few = TokenDataset.from_tokens(val_tokens.tokens[:8, :48].contiguous(), "embedded:val")
    trained = train_sae(small, model=gpt2_mini, data=few, progress=False)
    (run,) = trained.save(Workspace(path))
    told = features(gpt2_mini, trained.saes[HOOK], few, FeaturesConfig(n_top=2, null_draws=0))
    told.save(path, gpt2_mini, few, parents=(run.id,))
    head_atlas(gpt2_mini, few, HeadsConfig(n_top=8, n_control=0, n_repeats=0)).save(path, gpt2_mini, few)
    return path, run.id


def _answer(body: dict[str, Any]) -> str:
    user = body["messages"][1]["content"]
    n = len(re.findall(r"(?m)^\d+\. ", user))
    return str([1] * n) if user.startswith("Description") else f"LABEL: {'head' if '[[' in user else 'words'} of {n}"


@pytest.fixture
def endpoint() -> Iterator[list[str]]:
    with serving(Served(_answer)) as served:
        yield ["--endpoint", served.url, "--endpoint-model", "tiny"]


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["explain", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_features_by_an_endpoint_into_the_notes(
    workspace: tuple[Path, str], endpoint: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, sae = workspace
    book = NoteBook(path)
    first = _run(capsys, "-w", str(path), *endpoint, *FEW, "--top", "6", "--max-requests", "4")
    assert first["n_requests"] == 4
    assert first["n_left"] > 0
    told = _run(capsys, "-w", str(path), *endpoint, *FEW, "--top", "6")
    assert (told["run"], told["n_left"], told["explainer"]) == (first["run"], 0, f"tiny at {endpoint[1].split('/')[2]}")
    assert told["n_explained"] >= 2
    assert (told["detection"], told["fuzzing"], told["detection_gain"]) == (0.5, 0.5, 0.0)  # it says yes to everything
    subjects = list(told["labels"])
    book.write(subjects[0], label="mine")
    again = _run(capsys, "-w", str(path), *endpoint, *FEW, "--top", "6", "--to-notes")
    assert (again["n_requests"], again["n_noted"]) == (0, len(subjects) - 1)
    assert [book.read(s).author for s in subjects] == ["person", *["model"] * (len(subjects) - 1)]
    assert book.read(subjects[0]).label == "mine"
    saved = Workspace(path).run(told["run"])
    assert sae in saved.parents
    assert {row["feature"] for row in Workspace(path).read_table(saved, "explanation_scores").to_pylist()} == {
        int(s.rsplit("/", 1)[1]) for s in subjects
    }
    book.write(subjects[1], star=True)
    starred = _run(capsys, "-w", str(path), *endpoint, *FEW, "--starred")
    assert set(starred["labels"]) > {subjects[1]}  # and the one that lends its label


def test_heads_from_their_sequences(
    workspace: tuple[Path, str], endpoint: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = _run(capsys, "-w", str(workspace[0]), *endpoint, "--heads", "3.0", "3.4", "--n-test", "8", "--n-shown", "3")
    assert set(told["labels"]) <= {"head/gpt2-mini/3.0", "head/gpt2-mini/3.4"}
    assert told["labels"]["head/gpt2-mini/3.0"].startswith("head of ")
    assert told["fuzzing"] == 0.5


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "name who answers"),
        (["--explainer", "gpt2-mini", "--endpoint", "http://localhost/v1"], "name who answers"),
        (["--endpoint", "http://localhost/v1"], "--endpoint-model"),
        (["--endpoint", "http://localhost/v1", "--endpoint-model", "m", "--heads", "x"], "'x' is no head"),
        (["--endpoint", "http://localhost/v1", "--endpoint-model", "m", "--starred", "--heads", "all"], "no head"),
        (["--endpoint", "http://localhost/v1", "--endpoint-model", "m", "--features", "9999"], "9999"),
    ],
)
def test_what_cannot_be_asked_is_said(
    workspace: tuple[Path, str], argv: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "-w", str(workspace[0]), *argv, "--n-tokens", "256"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("attlas explain:")]
    assert why in line

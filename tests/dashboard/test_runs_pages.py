"""Home, Runs and Compare against the manifest; deleting and having back through the page's own callback."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from attlas.cli import main
from attlas.dashboard.app import create_app
from attlas.dashboard.pages import overview
from attlas.dashboard.pages.features import table
from attlas.dashboard.pages.runs import compare, page
from attlas.dashboard.theme import theme
from attlas.data.models_catalog import catalog
from attlas.data.notes import NoteBook, run_subject
from attlas.data.workspace import Ref, Workspace

from ..cli.test_next_step import parse

MODEL = Ref("gpt2-mini", "0" * 16)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path)
    for k, variance in ((8, 0.7), (16, 0.8)):
        with found.begin("sae", model=MODEL, config={"k": k, "arch": "topk"}, seed=0) as run:
            run.summary |= {"k": k, "arch": "topk", "explained_variance": variance, "hook": "blocks.3.attn.hook_z"}
            tokens = [1000, 2000]
            curve = {"tokens": tokens, "hook": ["blocks.3.attn.hook_z"] * 2, "explained_variance": [0.1, variance]}
            run.table("training", pa.table(curve))
        with found.begin("sae_eval", model=MODEL, config={"k": k}, parents=(run.id,)) as made:
            made.summary |= {"l0": float(k), "explained_variance": variance}
            rows: list[dict[str, Any]] = [
                {
                    "subject": "sae",
                    "metric": "explained_variance",
                    "value": variance,
                    "low": variance - 0.01,
                    "high": variance + 0.01,
                },
                {"subject": "sae", "metric": "cosine", "value": 0.9, "low": 0.8, "high": 0.95},
                {"subject": "pca", "metric": "cosine", "value": 0.1, "low": 0.0, "high": 0.2},
            ]
            made.table("evaluation", pa.Table.from_pylist([r | {"unit": "", "description": "d"} for r in rows]))
    return found


def _get(workspace: Workspace, address: str) -> dict[str, Any]:
    answer = create_app(workspace.path).server.test_client().get(address)
    assert answer.status_code == 200, answer.data
    found: dict[str, Any] = json.loads(answer.data)
    return found


def _text(component: Any) -> str:
    return json.dumps(component, default=lambda c: c.to_plotly_json())


def test_home_lists_models_and_commands_that_parse(workspace: Workspace) -> None:
    found = _get(workspace, "/api/overview")
    mine = next(m for m in found["models"] if m["name"] == "gpt2-mini")
    assert mine["n_runs"] == 4
    assert set(mine["there"]) == {"sae", "sae_eval"}
    assert [m["kind"] for m in mine["missing"]] == [k for k in overview.TEXT_KINDS if k not in mine["there"]]
    assert {m["name"] for m in found["models"]} >= {card.name for card in catalog() if card.present}
    newest = workspace.latest("sae_eval")
    assert newest is not None
    assert found["about"]["l0"] == {"run": newest.id, "text": "blocks.3.attn.hook_z, gpt2-mini"}
    assert found["numbers"]["l0"] == newest.summary["l0"]
    assert "missing" in _text(overview.view(found, theme("dark")))
    for kind in {*overview.TEXT_KINDS, *overview.VISION_KINDS}:
        assert "some-model" in repr(parse(shlex.split(overview.command(kind, "some-model"))[1:]))


def test_a_run_is_named_found_deleted_and_had_back(workspace: Workspace) -> None:
    run = workspace.runs("sae")[0]
    assert main(["runs", "name", run.id, "wide", "--workspace", str(workspace.path)]) == 0
    assert NoteBook(workspace.path).read(run_subject(run.id)).label == "wide"
    found = _get(workspace, f"/api/runs?q=wide+topk&run={run.id}")
    assert [r["id"] for r in found["runs"]] == [run.id]
    assert found["run"]["children"][0]["kind"] == "sae_eval"
    assert "wide" in _text(page.view(found, theme("light")))
    assert main(["runs", "delete", run.id, "gone", "--workspace", str(workspace.path)]) == 2  # all or none
    assert len(workspace.runs()) == 4

    client = create_app(workspace.path).server.test_client()

    def press(action: str) -> dict[str, Any]:
        id = {"type": "run", "action": action, "run": run.id}
        suffix = next(
            key
            for key in (d["output"] for d in json.loads(client.get("/_dash-dependencies").data))
            if "url.search" in key and "announce" in key and "acted" in key
        )
        changed = json.dumps(id, separators=(",", ":"), sort_keys=True) + ".n_clicks"
        outputs = [
            dict(zip(("id", "property"), part.split("."), strict=True)) for part in suffix.strip(".").split("...")
        ]
        body = {
            "output": suffix,
            "outputs": outputs,
            "inputs": [[{"id": id, "property": "n_clicks", "value": 1}]],
            "changedPropIds": [changed],
        }
        answer: dict[str, Any] = client.post("/_dash-update-component", json=body).json
        return answer

    press("delete")
    assert run.id not in {r.id for r in workspace.runs()}
    assert [away["id"] for away in _get(workspace, "/api/runs")["away"]] == [run.id]
    press("restore")
    assert run.id in {r.id for r in workspace.runs()}
    assert main(["runs", "--workspace", str(workspace.path), "--json"]) == 0


def test_differences_come_first(workspace: Workspace) -> None:
    first, second = workspace.runs("sae")
    found = _get(workspace, f"/api/compare?runs={first.id},{second.id},gone")
    assert found["gone"] == ["gone"]
    assert [[r["explained_variance"] for r in run["curves"]] for run in found["runs"]] == [[0.1, 0.8], [0.1, 0.7]]
    shown = _text(compare.view(found, theme("light")))
    assert "2 that differ" in shown  # k and explained variance of the summary
    assert "1 that differ" in shown  # k of the settings
    one, other = workspace.runs("sae_eval")
    evaluations = _get(workspace, f"/api/compare?runs={one.id},{other.id},{first.id}")
    assert evaluations["other_kinds"] == [first.id]
    found_rows = {
        m: compare._apart([r["intervals"][m] for r in evaluations["runs"]]) for m in ("explained_variance", "cosine")
    }
    assert found_rows == {"explained_variance": "yes", "cosine": "no"}
    assert "0.7 (0.69 to 0.71)" in _text(compare.view(evaluations, theme("light")))


def test_compare_without_enough_says_so(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.runs("sae")[0]
    assert "from two on" in _text(compare.view(_get(workspace, f"/api/compare?runs={run.id}"), theme("light")))
    empty = Workspace(tmp_path / "none")
    assert "attlas train" in _text(compare.view(_get(empty, "/api/compare"), theme("light")))
    assert "Not here" in _text(compare.view(_get(workspace, "/api/compare?features=x:1"), theme("light")))


def test_a_filter_that_cannot_be_asked_is_said(tmp_path: Path) -> None:
    """The page keeps its controls, so that the filter can be mended."""
    workspace = Workspace(tmp_path)
    with workspace.begin("features", model=MODEL) as run:
        run.summary |= {"n_features": 2, "n_tokens": 10}
        run.table(
            "features",
            pa.table({"feature": [0, 1], "max_act": [1.0, 2.0], "top_tokens": ["a", "b"], "promoted": ["", ""]}),
        )
    for query, why in (
        ("ranges=max_act+bigger", "is no range"),
        ("ranges=x<3", "no 'x'"),
        ("q=a&in=examples", "no index"),
    ):
        found = _get(workspace, f"/api/features?{query}")
        assert why in found["problem"]
        assert found["rows"]
        assert "Left out" in _text(table.view(found, theme("light")))
    assert [r["feature"] for r in _get(workspace, "/api/features?ranges=max_act>1.5")["rows"]] == [1]
    assert _get(workspace, "/api/feature?id=1&list=ranges%3Dx%253C3")["found"]

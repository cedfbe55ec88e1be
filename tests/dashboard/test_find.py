"""The palette's answers, and the page of features that fire on a text, beside the workspace's tables."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from attlas.analyses.features.on_text import firing
from attlas.dashboard.app import create_app
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import load_sae

TEXT = "the white whale, and the white"


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Any:
    return create_app(workspace.path).server.test_client()


def _found(client: Any, q: str, **more: str) -> list[dict[str, Any]]:
    return json.loads(client.get("/find?" + urlencode({"q": q, **more})).data)["found"]


@pytest.mark.parametrize("asked", ["3.0", "L3H0", "l3 h0", " 3.0 "])
def test_a_head_is_found_by_its_names(client: Any, asked: str) -> None:
    first = _found(client, asked, model="gpt2-mini")[0]
    assert (first["sort"], first["href"]) == ("head", "/head?layer=3&head=0&model=gpt2-mini")


def test_features_runs_models_and_pages_are_found(client: Any, workspace: Workspace) -> None:
    run = workspace.latest("features")
    assert run is not None
    number = _found(client, "#7")
    assert [r["href"] for r in number if r["sort"] == "feature"] == [f"/feature?run={run.id}&id=7&model=gpt2-mini"]
    table = workspace.read_table(run, "features").to_pandas()
    word = next(w for w in " ".join(table.top_tokens.dropna()).split() if len(w) > 3 and w.isalpha())
    ids = {int(r["text"].split()[1]) for r in _found(client, word) if r["sort"] == "feature"}
    has = table[(table.top_tokens + " " + table.promoted).str.lower().str.contains(word.lower(), regex=False)]
    assert ids
    assert ids <= set(has.feature)
    assert f"/features?run={run.id}&model=gpt2-mini" in [r["href"] for r in _found(client, run.id)]
    assert ("model", "vit-mini") in [(r["sort"], r["text"]) for r in _found(client, "vit-m")]
    assert _found(client, "eval")[0]["text"] == "Evaluation"
    assert {r["sort"] for r in _found(client, "")} == {"page"}
    assert _found(client, "nothing of this name") == []


def test_a_text_is_read_as_by_the_function(client: Any, workspace: Workspace, gpt2_mini: HookedModel) -> None:
    query = {"text": TEXT, "model": "gpt2-mini", "wait": 60}
    page = json.loads(client.get("/api/text?" + urlencode(query)).data)
    (hook, id), *_ = page["saes"].items()
    run = next(r for r in workspace.runs("sae") if r.id == id)
    fired = firing(gpt2_mini, {hook: load_sae(str(workspace.folder(run)))}, TEXT)
    told = workspace.latest("features")
    assert told is not None
    most = workspace.read_table(told, "features").to_pandas().set_index("feature").max_act.to_dict()
    rows = fired.ranked({(hook, f): m for f, m in most.items() if m})
    assert page["tokens"] == list(fired.tokens)
    assert [(r["feature"], r["activation"]) for r in page["rows"]] == [
        (r["feature"], pytest.approx(r["activation"], rel=1e-4)) for r in rows[:60]
    ]
    best = page["rows"][0]
    one = json.loads(client.get("/api/text?" + urlencode(query | {"feature": f"{hook}/{best['feature']}"})).data)["one"]
    assert one["along"][one["peak"]] == pytest.approx(best["activation"], rel=1e-4)
    assert len(one["sources"]) == len(page["tokens"])
    here = json.loads(client.get("/api/text?" + urlencode(query | {"at": 3})).data)
    assert {r["position"] for r in here["rows"]} == {3}
    dense = json.loads(client.get("/api/text?" + urlencode(query | {"min": 5})).data)["rows"]
    assert all(r["density"] >= 0.05 for r in dense)
    assert len(dense) < len(rows)

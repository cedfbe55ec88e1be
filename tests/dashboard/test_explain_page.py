"""Explain and steer on pages: a job asks, its labels go onto the feature's page and into the note; steering is kept."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import urlencode

import pytest

from attlas.analyses.explain import ExplainConfig, Prompt, Reply
from attlas.analyses.steering import SteerConfig, steer
from attlas.dashboard.app import create_app
from attlas.dashboard.jobs import JobQueue
from attlas.dashboard.pages import pages
from attlas.dashboard.pages.features import explain as page
from attlas.dashboard.theme import theme
from attlas.data.notes import NoteBook, feature_subject
from attlas.data.workspace import Run, Workspace
from attlas.interp import HookedModel
from attlas.saes import load_sae

VIEWS = {p.path: p.view for p in pages()}


class Nodding:
    """Calls everything the same, says yes to everything."""

    name = identity = "nodding"

    def __init__(self, model: HookedModel) -> None: ...

    def ask(self, prompt: Prompt) -> Reply:
        n = len(re.findall(r"(?m)^\d+\. ", prompt.user))
        return Reply(str([1] * n) if "Description" in prompt.user else "LABEL: words of the sea")


@pytest.fixture
def app(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(page, "LocalExplainer", Nodding)
    monkeypatch.setattr(page, "CONFIG", ExplainConfig(context=8, n_shown=4, n_test=8))
    monkeypatch.setattr(page, "N_TOKENS", 4096)
    return create_app(workspace.path)


def _json(app: Any, path: str, **params: Any) -> dict[str, Any]:
    answer = app.server.test_client().get(f"/api{path}?{urlencode(params)}")
    assert answer.status_code == 200, answer.data[:300]
    found: dict[str, Any] = json.loads(answer.data)
    assert VIEWS[path](found, theme("light")) is not None
    return found


def _press(app: Any, **id: Any) -> None:
    """What the browser posts when a button is pressed."""
    client = app.server.test_client()
    kind = f'"type":"{id["type"]}"'
    wanted = next(d for d in client.get("/_dash-dependencies").json if kind in d["inputs"][0]["id"])
    outputs = [
        dict(zip(("id", "property"), name.split("@")[0].rsplit(".", 1), strict=True))
        for name in wanted["output"].strip(".").split("...")
    ]
    body = {"output": wanted["output"], "outputs": outputs, "state": []}
    body["inputs"] = [[{"id": id, "property": "n_clicks", "value": 1}]]
    body["changedPropIds"] = [json.dumps(id, sort_keys=True, separators=(",", ":")) + ".n_clicks"]
    answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code == 200, answer.data[:500]


def _ended(queue: JobQueue) -> None:
    until = time.monotonic() + 240
    while any(not job.finished for job in queue._jobs.values()) and time.monotonic() < until:
        time.sleep(0.02)


def _run(workspace: Workspace, kind: str) -> Run:
    found = workspace.latest(kind, model="gpt2-mini")
    assert found is not None
    return found


def test_a_feature_is_explained_and_its_label_taken(app: Any, workspace: Workspace) -> None:
    told, sae = _run(workspace, "features"), _run(workspace, "sae")
    rows = workspace.read_table(told, "features").to_pandas()
    likely = rows.density.sub(0.02).abs().idxmin()  # neither rare nor dense: there are excerpts enough
    feature = int(rows.feature[likely])
    here = {"run": told.id, "id": feature}
    before = _json(app, "/explain", **here)
    assert (before["labels"], before["job"], before["sae"]) == ([], None, sae.id)
    assert before["explainer"] in before["explainers"]
    assert _json(app, "/explain", **here)["job"] is None  # looking asks nothing
    queue = app.server.extensions["attlas.jobs"]
    _press(app, type="explain", sae=sae.id, feature=feature, who="gpt2-mini")
    _ended(queue)
    after = _json(app, "/explain", **here, explainer="gpt2-mini")
    assert after["job"]["state"] == "done", after["job"]
    (row,) = after["labels"]
    assert (row["label"], row["explainer"]) == ("words of the sea", "nodding")
    assert row["scores"]["detection"]["accuracy"] == 0.5
    (shown,) = _json(app, "/feature", **here)["labels"]
    assert shown["run"] == row["run"]
    whole = _json(app, "/explain", run=row["run"])
    assert feature in {int(r["name"]) for r in whole["rows"]}
    assert NoteBook(workspace.path).read(feature_subject(sae.id, feature)).label == ""
    _press(app, type="take-label", subject=row["subject"], run=row["run"])
    note = NoteBook(workspace.path).read(feature_subject(sae.id, feature))
    assert (note.label, note.author) == ("words of the sea", "model")
    NoteBook(workspace.path).undo(note.subject)
    workspace.remove(row["run"])  # other tests share the workspace


def test_steering_is_drawn_and_kept(app: Any, workspace: Workspace, gpt2_mini: HookedModel) -> None:
    sae = _run(workspace, "sae")
    asked = {"sae": sae.id, "feature": 3, "strength": 30, "prompt": "The white", "wait": 60}
    first = _json(app, "/steer", **asked)
    assert first["job"]["state"] == "done", first["job"]
    config = SteerConfig(features=(3,), strength=30.0)
    direct = steer(gpt2_mini, "The white", config, load_sae(workspace.folder(sae)))
    assert [t["tokens"] for t in first["texts"]] == [list(t.tokens) for t in direct.texts]
    assert first["kept"] is None
    _press(app, type="keep-steering", key=first["job"]["key"])
    kept = _run(workspace, "steering")
    assert kept.parents == (sae.id,)
    assert _json(app, "/steer", **asked)["kept"] == kept.id
    saved = _json(app, "/steer", run=kept.id)
    assert [t["tokens"] for t in saved["texts"]] == [t["tokens"] for t in first["texts"]]
    assert saved["texts"][1]["corpus"][0] == pytest.approx(first["texts"][1]["corpus"][0])
    workspace.remove(kept)
    head = _json(app, "/steer", model="gpt2-mini", heads="3.0", mode="clamp")
    assert "no activation to clamp" in head["error"]
    assert _json(app, "/steer", model="gpt2-mini")["job"] is None

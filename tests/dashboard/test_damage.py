"""Damaged workspaces in the browser: a card or a line of JSON that says what to do, never other numbers nor HTTP 500."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.redundancy.scores import redundancy
from attlas.dashboard.app import create_app
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel

PATHS = ("overview", "layers", "health", "features", "training", "prune")


@pytest.fixture
def place(gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path / "w")
    entropy(gpt2_mini, val_tokens.take(1)).save(found, gpt2_mini.ref, val_tokens.ref)
    redundancy(gpt2_mini, val_tokens.take(1)).save(found, gpt2_mini.ref, val_tokens.ref)
    return found


def draw(client: Any, path: str) -> str:
    """What the router's callback answers for a place, as JSON text."""
    wanted = next(d for d in client.get("/_dash-dependencies").json if "drawn.data" in d["output"])
    told = {"pathname": path, "search": "", "data": "dark", "n_intervals": 0}
    parts = [
        [{**each, "value": told.get(each["property"]) if each["id"] != "acted" else None} for each in wanted[key]]
        for key in ("inputs", "state")
    ]
    outputs = [
        dict(zip(("id", "property"), name.rsplit(".", 1), strict=True))
        for name in wanted["output"].strip(".").split("...")
    ]
    body = {"output": wanted["output"], "outputs": outputs, "inputs": parts[0], "state": parts[1]}
    body["changedPropIds"] = ["url.pathname"]
    answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code == 200, answer.get_data(as_text=True)[:500]
    return answer.get_data(as_text=True)


def test_flipped_bits(place: Workspace) -> None:
    client = create_app(place.path).server.test_client()
    before = {path: client.get(f"/api/{path}").get_data(as_text=True) for path in PATHS}
    files = [place.folder(run) / name for run in place.runs() for name in sorted(run.files)]
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(30):
        path = files[n % len(files)]
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(torn))
        for page in PATHS:
            answer = client.get(f"/api/{page}")
            assert answer.status_code in (200, 400)
            if answer.status_code == 400:
                refused += 1
                assert path.name in answer.json["error"]
                assert "is damaged" in answer.json["error"]
                if n < 5:
                    assert "is damaged" in draw(client, f"/{page}" if page != "overview" else "/")
            else:
                assert answer.get_data(as_text=True) == before[page]
        path.write_bytes(whole)
    assert refused >= 30  # each file is shown somewhere
    assert {path: client.get(f"/api/{path}").get_data(as_text=True) for path in PATHS} == before


@pytest.mark.parametrize("text", ["[1", '{"schema_version": 99, "runs": []}', '{"schema_version": 1, "runs": 5}'])
def test_a_broken_manifest(place: Workspace, text: str) -> None:
    client = create_app(place.path).server.test_client()
    (place.path / "manifest.json").write_text(text)
    for page in PATHS:
        answer = client.get(f"/api/{page}")
        assert answer.status_code == 400
        assert "manifest" in answer.json["error"] or "schema version" in answer.json["error"]
    assert "This page cannot be shown" in draw(client, "/layers")
    assert "This page cannot be shown" in draw(client, "/")
    assert client.get("/picture/x/0.png").status_code == 400


@pytest.mark.parametrize(
    "change", [{"summary": {}}, {"summary": {"n_tokens": "many"}}, {"config": {"n": [1]}}, {"model": 3}]
)
def test_odd_entries(place: Workspace, change: dict) -> None:
    manifest = json.loads((place.path / "manifest.json").read_text())
    manifest["runs"][0] |= change
    (place.path / "manifest.json").write_text(json.dumps(manifest))
    client = create_app(place.path).server.test_client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for page in PATHS:
            assert client.get(f"/api/{page}").status_code == 200
        assert "No such page" not in draw(client, "/layers")

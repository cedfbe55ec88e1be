"""Heads and their health: JSON equal to the tables, and a live map equal to eager attention."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from attlas.dashboard.app import create_app
from attlas.dashboard.pages import pages
from attlas.dashboard.pages.heads import head
from attlas.dashboard.pages.heads.metrics import named
from attlas.dashboard.reader import clean
from attlas.dashboard.theme import theme
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel

PAGES = {page.path: page for page in pages()}


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Any:
    return create_app(workspace.path).server.test_client()


def _json(client: Any, url: str) -> Any:
    answer = client.get(url)
    assert answer.status_code == 200, (url, answer.data[:300])
    return json.loads(answer.data)


def _frame(workspace: Workspace, kind: str, table: str, model: str = "gpt2-mini") -> Any:
    run = next(run for run in workspace.runs(kind) if run.model.name in (model, "collapse-demo"))
    return workspace.read_table(run, table).to_pandas()


def test_layers_offer_the_anatomy(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/layers?model=gpt2-mini&metric=window_64")
    assert page["metric"] == "window_64"
    mass = _frame(workspace, "anatomy", "map_mass")
    wide = mass[(mass.kind == "window") & (mass["at"] == 64)].sort_values(["layer", "head"])
    assert [h["window_64"] for h in page["heads"]] == pytest.approx(wide.mass.tolist())
    anatomy = _frame(workspace, "anatomy", "map_anatomy").sort_values(["layer", "head"])
    assert [h["label"] for h in page["heads"]] == anatomy.label.tolist()
    assert {"label_score", "duplicate_token", "repeat_induction", "top_k_4", "column_peak"} <= set(page["metrics"])
    columns = _frame(workspace, "anatomy", "map_columns")
    T = columns.position.max() + 1
    inside = columns[(columns.layer == 0) & (columns["head"] == 0) & (columns.position.between(1, T - 8))]
    assert page["heads"][0]["column_peak"] == pytest.approx(inside.per_query.max(), rel=1e-6)
    vision = _json(client, "/api/layers?model=vit-mini")
    assert "repeat_induction" not in vision["metrics"]
    assert len(vision["heads"]) == 24


def test_a_head_has_its_rows(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/head?model=gpt2-mini&layer=3&head=4")
    entropy = _frame(workspace, "entropy", "head_entropy")
    mine = entropy[(entropy.layer == 3) & (entropy["head"] == 4)].iloc[0]
    assert page["numbers"]["q25"] == pytest.approx(mine.q25)
    assert [row["step"] for row in page["timeline"]] == [250, 8847]
    distances = [row["mass"] for row in page["masses"] if row["kind"] == "distance"]
    assert sum(distances) == pytest.approx(1, abs=1e-3)
    assert _json(client, "/api/head?model=gpt2-mini&layer=9&head=0")["numbers"] is None
    assert _json(client, "/api/head?model=gpt2-mini&layer=-1&head=zero")["numbers"] is None


@pytest.mark.parametrize("place", [(2, 0), (3, 4)])
def test_live_map_is_eager_attention(client: Any, gpt2_mini: HookedModel, place: tuple[int, int]) -> None:
    text = "the cat saw the dog and the cat saw the"
    page = _json(client, f"/api/head?model=gpt2-mini&layer={place[0]}&head={place[1]}&text={text}&to=5&wait=60")
    assert page["job"]["state"] == "done", page["job"]
    tokens = gpt2_mini.to_tokens(text)
    eager = type(gpt2_mini.hf)(gpt2_mini.hf.config)
    eager.load_state_dict(gpt2_mini.hf.state_dict())
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        expected = eager.eval()(tokens, output_attentions=True).attentions[place[0]][0, place[1]].double().numpy()
    np.testing.assert_allclose(page["pattern"], expected, atol=1e-4)
    assert page["tokens"] == gpt2_mini.to_str_tokens(tokens)
    entropy = -(expected * np.log(np.maximum(expected, 1e-30))).sum(-1)
    np.testing.assert_allclose(page["row_entropy"], entropy, atol=1e-3)
    assert page["to"] == 5
    sparse = _json(client, f"/api/head-text?model=gpt2-mini&layer={place[0]}&head={place[1]}&text={text}&wait=60")
    (row,) = sparse["sequences"]
    queries = np.repeat(np.arange(len(row["counts"])), row["counts"])
    kept = expected[queries, row["keys"]]
    np.testing.assert_allclose(np.array(row["weights"]) / sparse["scale"], kept, atol=2e-4)
    assert [(expected[q] >= 0.0051).sum() <= n or n == 8 for q, n in enumerate(row["counts"])] == [True] * len(
        tokens[0]
    )
    shown = PAGES["/head"].view(clean(page), theme("light"))
    told = json.dumps(shown, default=lambda component: component.to_plotly_json())
    assert "from <b>" in told


def test_no_text_map_of_vision_models(client: Any) -> None:
    page = _json(client, "/api/head?model=vit-mini&layer=1&head=2")
    assert page["vision"]
    assert "job" not in page
    told = json.dumps(PAGES["/head"].view(clean(page), theme("dark")), default=lambda c: c.to_plotly_json())
    assert "/vit-head?model=vit-mini&layer=1&head=2" in told


def test_health_shows_every_kind(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/health?k=16&full=2")
    assert all(page["runs"].values())
    coverage = _frame(workspace, "selection", "selection_coverage")
    expected = coverage[coverage.k == 16].sort_values(["selector", "layer"]).coverage
    assert [row["coverage"] for row in page["coverage"]] == pytest.approx(expected.tolist())
    assert page["full"] == 2
    assert len(page["window_loss"]) == 2 * 5
    assert any(alert["began"] and alert["layer"] == 1 for alert in page["alerts"])
    collapse = _frame(workspace, "collapse", "collapse")
    first = page["collapse"][0]
    same = collapse[(collapse.method == first["method"]) & (collapse.step == first["step"])]
    assert first["entropy"] == pytest.approx(same.entropy.mean())
    told = json.dumps(PAGES["/health"].view(clean(page), theme("light")), default=lambda c: c.to_plotly_json())
    assert "alerts began" in told
    assert "3.0 between steps 250 and 8,847" in told


def test_health_says_how_to_fill_it(workspace: Workspace) -> None:
    other = create_app(workspace.path / "nothing").server.test_client()
    page = _json(other, "/api/health")
    told = json.dumps(PAGES["/health"].view(clean(page), theme("light")), default=lambda c: c.to_plotly_json())
    for what in ("timeline --checkpoints DIR", "selection", "windows", "cost", "collapse"):
        assert f"attlas entropy {what}" in told


def test_health_shows_what_the_readmes_entropy_run_made(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/health?model=gpt2-mini")
    heads = _frame(workspace, "entropy", "head_entropy").sort_values(["layer", "head"])
    assert [row["normalized"] for row in page["entropy"]] == pytest.approx(heads.normalized.tolist())
    for kind in ("timeline", "tracker", "coverage", "window_loss", "cost", "collapse"):
        page[kind] = []
    told = json.dumps(PAGES["/health"].view(clean(page), theme("light")), default=lambda c: c.to_plotly_json())
    lowest = heads.loc[heads.normalized.idxmin()]
    assert f"Lowest: head {lowest.layer:.0f}.{lowest['head']:.0f}" in told
    assert "Not measured yet" in told


@pytest.mark.parametrize("measured", ["heads", "entropy", "both"])
def test_a_heads_cards_are_of_what_was_measured(measured: str) -> None:
    of_heads = {"pattern_entropy": 1.5, "prev_token_score": 0.25, "induction_score": 0.125, "qk_distance": 8.0}
    of_entropy = {"entropy": 2.5, "normalized": 0.5, "sink_mass": 0.75}
    row = {"heads": of_heads, "entropy": of_entropy, "both": of_heads | of_entropy}[measured]
    shown = str(head._numbers({"numbers": row | {"label_score": None}, "metrics": list(row)}))
    names = [named(metric)[0] for metric in row]
    assert len(names) >= 3
    cards = shown[: shown.index("Every score")]
    assert all(name in cards for name in names)
    assert named("output_ratio")[0] not in cards

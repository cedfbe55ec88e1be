"""Pages: JSON equal to the tables, an empty state each, and no URL that breaks one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.dashboard.app import create_app
from attlas.dashboard.components import short, table
from attlas.dashboard.pages import pages
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.server import free_port
from attlas.dashboard.theme import theme
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, WorkspaceError

NAMES = [
    "run",
    "id",
    "model",
    "metric",
    "layer",
    "head",
    "sort",
    "q",
    "family",
    "min",
    "max",
    "offset",
    "limit",
    "ablation",
    "strength",
    "k",
    "full",
    "text",
    "to",
    "example",
]
PAGES = {page.path: page for page in pages()}


def _json(client: object, url: str) -> dict:
    answer = client.get(url)  # type: ignore[attr-defined]
    assert answer.status_code == 200, (url, answer.data[:300])
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    return json.loads(answer.data)


def test_features_are_those_of_the_table(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    run = workspace.latest("features")
    assert run is not None
    table = workspace.read_table(run, "features").to_pandas()
    page = _json(client, "/api/features?sort=-density&limit=7&offset=2")
    expected = table.sort_values(["density", "feature"], ascending=[False, True]).feature[2:9].tolist()
    assert [r["feature"] for r in page["rows"]] == expected
    assert page["total"] == len(table)
    family = table.family.iloc[0]
    assert _json(client, f"/api/features?family={family}")["total"] == int((table.family == family).sum())
    low = _json(client, "/api/features?min=1")["total"]
    assert low == int((table.density >= 0.01).sum())


def test_a_feature_page_holds_its_rows(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    run = workspace.latest("features")
    assert run is not None
    examples = workspace.read_table(run, "examples").to_pandas()
    feature = int(examples.feature.iloc[0])
    page = _json(client, f"/api/feature?id={feature}")
    mine = examples[examples.feature == feature]
    assert sorted(e["activation"] for e in page["examples"]) == pytest.approx(sorted(mine.activation))
    assert sum(h["share"] for h in page["heads"]) == pytest.approx(1, abs=1e-5)
    assert not _json(client, "/api/feature?id=999999")["found"]
    assert not _json(client, "/api/feature")["found"]


def test_a_dead_feature_promises_nothing(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    run = workspace.latest("features")
    assert run is not None
    table = workspace.read_table(run, "features").to_pandas()
    page = _json(client, f"/api/feature?id={int(table.feature[table.n_active > 0].iloc[0])}")
    page["row"] |= {"n_active": 0, "induction_null": None}
    told = {}
    for has_output in (True, False):
        dead = clean({**page, "logits": [], "has_output": has_output})
        told[has_output] = json.dumps(
            PAGES["/feature"].view(dead, theme("light")), default=lambda c: c.to_plotly_json()
        )
        assert "it never fired on this text" in told[has_output]
        assert "see below" not in told[has_output]
        assert "backbone" not in told[has_output]
    page["row"]["n_active"] = 5
    alive = PAGES["/feature"].view(clean({**page, "logits": [], "has_output": False}), theme("light"))
    assert "is a backbone" in json.dumps(alive, default=lambda c: c.to_plotly_json())


def test_layers_and_vit_show_the_tables(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    entropy = workspace.latest("entropy")
    assert entropy is not None
    table = workspace.read_table(entropy, "head_entropy").to_pandas()
    page = _json(client, "/api/layers?model=gpt2-mini")
    assert [h["entropy"] for h in page["heads"]] == pytest.approx(table.sort_values(["layer", "head"]).entropy.tolist())
    assert {r["module"] for r in page["redundancy"]} == {"attn", "mlp", "block"}
    page = _json(client, "/api/vit?metric=js&ablation=zero&layer=2&head=3")
    assert {r["ablation"] for r in page["importance"]} == {"zero"}
    assert page["ablations"] == ["mean_per_position", "zero"]
    assert (page["layer"], page["head"]) == (2, 3)
    assert sum(r["mass"] for r in page["rings"]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_page_draws_full_and_empty(path: str, mode: str, workspace: Workspace, tmp_path: Path) -> None:
    full, empty = WorkspaceReader(workspace.path), WorkspaceReader(tmp_path / "none")
    for reader, params in (
        (full, {}),
        (full, {"id": "3", "model": "gpt2-mini"}),
        (full, {"model": "vit-mini"}),
        (empty, {}),
    ):
        drawn = json.dumps(PAGES[path].view(clean(PAGES[path].data(reader, params)), theme(mode)), default=_plain)
        assert "Traceback" not in drawn
        if reader is empty:
            assert "attlas " in drawn  # the command that fills it


def _plain(component: object) -> object:
    return component.to_plotly_json()  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=60)
@given(
    path=st.sampled_from(sorted(PAGES)),
    params=st.dictionaries(
        st.sampled_from(NAMES),
        st.one_of(st.text(max_size=12), st.integers(-(10**12), 10**12).map(str), st.just("nan"), st.just("1e999")),
    ),
)
def test_no_parameters_break_a_page(path: str, params: dict[str, str], workspace: Workspace) -> None:
    page = PAGES[path]
    page.view(clean(page.data(WorkspaceReader(workspace.path), params)), theme("light"))


def test_what_cannot_be_served_is_said(workspace: Workspace, tmp_path: Path) -> None:
    client = create_app(workspace.path).server.test_client()
    assert client.get("/api/nothing").status_code == 404
    assert set(_json(client, "/api")["pages"]) >= {"/api/overview", "/api/features"}
    (tmp_path / "manifest.json").write_text('{"schema_version": 99, "runs": []}')
    with pytest.raises(WorkspaceError):
        create_app(tmp_path)
    with pytest.raises(ConfigError):
        free_port("127.0.0.1", 99999)


def _count(component: object) -> int:
    children = getattr(component, "children", None)
    inner = children if isinstance(children, (list, tuple)) else [children]
    return 1 + sum(_count(child) for child in inner if child is not None)


@pytest.mark.parametrize("n_rows", [5, 300])
def test_large_tables_are_one_component(n_rows: int) -> None:
    """Dash takes time in the square of the number of components: 4,000 cells would block the browser for minutes."""
    rows = [{"layer": i // 9, "head": i % 9, **{f"m{j}": i / 7 for j in range(14)}} for i in range(n_rows)]
    shown = table(rows, {name: name for name in rows[0]}, summary="The numbers")
    assert _count(shown) < 300
    if n_rows == 300:
        grid = shown.children[1].children
        assert grid.rowData == rows
        assert [d["field"] for d in grid.columnDefs] == list(rows[0])


def test_the_survey_lists_a_heads_features_and_matches(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    page = _json(client, "/api/survey?layer=3&head=2")
    run, matching = workspace.latest("head_survey"), workspace.latest("sae_matching")
    assert run is not None
    assert matching is not None
    table = workspace.read_table(run, "head_features").to_pandas()
    mine = table[(table.layer == 3) & (table["head"] == 2)]
    assert sorted(r["feature"] for r in page["features"]) == sorted(mine.feature)
    assert [r["group"] for r in page["features"]] == sorted(mine.group)
    features = workspace.latest("features")
    assert features is not None
    assert page["features_run"] == features.id
    assert page["matching"]["features_runs"] == [features.id] * 2
    rows = workspace.read_table(matching, "sae_matches").to_pandas()
    for kind, found in {"split": rows.n_split > 1, "same": rows.mutual & (rows.cosine >= 0.7)}.items():
        part = _json(client, f"/api/survey?kind={kind}")["matching"]
        assert part["counts"][kind] == int(found.sum()) > 0
        assert {r["feature"] for r in part["rows"]} <= set(rows.feature[found])
    assert sum(page["matching"]["cosine"]) == len(rows)
    shown = json.dumps(PAGES["/survey"].view(page, theme("light")), default=lambda c: c.to_plotly_json())
    assert "Beside null dictionaries" in shown
    assert f'"{short(matching.summary["mean_correlation_control"])}"' in shown
    assert _json(client, "/api/survey?head=77")["head"] == 0


def test_values_are_told_as_a_person_would() -> None:
    """A list without brackets; no interval where heads were too few for one; no command where none helps."""
    from attlas.dashboard.components.basic import empty
    from attlas.dashboard.pages.features.survey import _numbers
    from attlas.dashboard.pages.saes.training import _setting

    assert [_setting(v) for v in (["a", "b"], [], None, 16)] == ["a, b", "—", "—", "16"]
    heads = [{"verdict": verdict} for verdict in ["polysemantic"] * 3 + ["coherent", "as random"]]
    few = {"summary": {"polysemantic": 0.6, "polysemantic_low": None, "polysemantic_high": None}, "heads": heads}
    assert all(words in str(_numbers(few)) for words in ("'3 of 5'", "'1 of 5'", "too few for an interval"))
    many = few | {"summary": {"polysemantic_low": 0.5, "polysemantic_high": 0.9}}
    assert "95 % interval of the share 0.5 to 0.9" in str(_numbers(many))
    assert "Polysemantic" not in str(_numbers(few | {"heads": [{"n_groups": 3}]}))  # a run older than the verdict
    assert "Pre" not in str(empty("No such page", "Nothing is at /x."))

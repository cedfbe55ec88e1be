"""The finder of heads against the tables, whatever the workspace holds; large tables are read by row group."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from attlas.analyses.heads import (
    ProjectConfig,
    WeightsConfig,
    head_logits,
    head_projections,
    head_weights,
    load_headvis,
    save_headvis,
)
from attlas.dashboard.app import create_app
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.pages.heads import finder, head, projections, sequences
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data import workspace as of_workspace
from attlas.data.runs import rows
from attlas.data.runs.rows import read_where, rows_per_group
from attlas.data.text import TokenDataset
from attlas.data.workspace import Ref, Workspace
from attlas.errors import WorkspaceError
from attlas.interp import HookedModel


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Any:
    return create_app(workspace.path).server.test_client()


def _json(client: Any, url: str) -> Any:
    answer = client.get(url)
    assert answer.status_code == 200, (url, answer.data[:300])
    return json.loads(answer.data)


def _frame(workspace: Workspace, kind: str, table: str, model: str = "gpt2-mini") -> Any:
    run = next(run for run in workspace.runs(kind) if run.model.name == model)
    return workspace.read_table(run, table).to_pandas().sort_values(["layer", "head"], kind="stable")


def _told(page: Any) -> str:
    return json.dumps(finder.view(page, theme("light")), default=lambda component: component.to_plotly_json())


def test_numbers_are_those_of_every_table(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/heads?model=gpt2-mini&x=entropy&size=layer_redundancy")
    assert (page["x"], page["y"], page["size"]) == ("entropy", "pattern_entropy", "layer_redundancy")
    heads = page["rows"]
    assert [(r["layer"], r["head"]) for r in heads] == [(a, b) for a in range(4) for b in range(6)]
    for kind, table, name in (
        ("heads", "heads", "output_ratio"),
        ("heads", "heads", "sink_mass"),  # of both runs; the corpus counts
        ("entropy", "head_entropy", "entropy"),
        ("heads", "heads", "repeat_induction"),
        ("anatomy", "map_anatomy", "repeat_duplicate_token"),
    ):
        assert [r[name] for r in heads] == pytest.approx(_frame(workspace, kind, table)[name].tolist()), name
    account = _frame(workspace, "heads", "head_account")
    assert [r["share: induction"] for r in heads] == pytest.approx(account[account.rule == "induction"].share.tolist())
    scores = workspace.read_table(workspace.latest("redundancy") or "", "redundancy").to_pandas()
    by_layer = scores[scores.module == "attn"].set_index("layer").score
    assert [r["layer_redundancy"] for r in heads] == pytest.approx([by_layer[r["layer"]] for r in heads])
    table = workspace.read_table(workspace.latest("features") or "", "features").to_pandas()
    alive = table[table.density > 0].top_head.value_counts()
    assert [r["n_top_features"] for r in heads[18:]] == [int(alive.get(head, 0)) for head in range(6)]
    assert "n_top_features" not in heads[0]  # no autoencoder there


def test_the_first_by_a_number(client: Any) -> None:
    page = _json(client, "/api/heads?model=gpt2-mini&metric=prev_token_score&n=5")
    by = {(r["layer"], r["head"]): r["prev_token_score"] for r in page["rows"]}
    assert [tuple(place) for place in page["top"]] == sorted(by, key=by.__getitem__)[::-1][:5]
    lowest = _json(client, "/api/heads?model=gpt2-mini&metric=prev_token_score&n=5&order=lowest")
    assert [tuple(place) for place in lowest["top"]] == sorted(by, key=by.__getitem__)[:5]
    assert _json(client, "/api/heads?metric=nothing&n=-3&x=layer")["n"] == 10


def test_two_heads_beside_each_other(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/heads?model=gpt2-mini&compare=3.0,2.0&heads=1.1,9.9")
    assert page["compare"]["heads"] == [[3, 0], [2, 0]]
    assert page["lit"] == [[1, 1]]
    account = _frame(workspace, "heads", "head_account")
    one, other = (account[(account.layer == a) & (account["head"] == 0)].set_index("rule") for a in (3, 2))
    for row in page["compare"]["account"]:
        assert row["difference"] == pytest.approx(one.share[row["rule"]] - other.share[row["rule"]])
        assert row["low_other"] == pytest.approx(other.low[row["rule"]])
    assert sum(row["difference"] for row in page["compare"]["account"]) == pytest.approx(0, abs=1e-6)
    told = _told(page)
    assert "3.0 beside 2.0" in told
    assert "1 heads in the box" in told
    for asked in ("3.0", "3.0,9.9", "x", "3.0,3.0"):
        assert _json(client, f"/api/heads?model=gpt2-mini&compare={asked}")["compare"] is None


def test_vision_models_and_other_runs_alone(client: Any, workspace: Workspace, tmp_path: Path) -> None:
    page = _json(client, "/api/heads?model=vit-mini")
    names = [number["name"] for number in page["numbers"]]
    assert {"share: ring 1", "content_relevance", "entropy"} <= set(names)
    assert any(name.startswith("value: ") for name in names)
    assert "prev_token_score" not in names  # empty for images
    assert page["vision"]
    nothing = finder.data(WorkspaceReader(tmp_path / "none"), {"model": "gpt2-mini"})
    assert "attlas heads --model gpt2-mini" in _told(clean(nothing))


def test_only_row_groups_that_hold_the_head_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "layer": [n // 60 for n in range(240)],
            "head": [n // 10 % 6 for n in range(240)],
            "key": [list(range(n, n + 400)) for n in range(240)],
        }
    )
    monkeypatch.setattr(rows, "_GROUP_BYTES", 1 << 16)
    assert 16 <= rows_per_group(table) < 60
    assert rows_per_group(table.select(["layer"])) == (1 << 16) // 8
    place = Workspace(tmp_path / "w")
    with place.begin("x", model=Ref("m", "0" * 16)) as writer:
        writer.table("sequences", table)
    run = writer.record
    path = place.table_path(run, "sequences")
    want = table.filter(pc.equal(table["layer"], 2)).slice(30, 10)
    assert read_where(path, {"layer": 2, "head": 3}).to_pydict() == want.to_pydict()
    assert place.read_rows(run, "sequences", ["key"], layer=2, head=3).to_pydict() == want.select(["key"]).to_pydict()
    assert place.read_rows(run, "sequences", layer=9, head=0).num_rows == 0
    # A large file is not hashed: a flipped byte in a page that is read is an error, in another it is not noticed.
    monkeypatch.setattr(of_workspace, "_HASHED_WHOLE", 0)
    meta = pq.ParquetFile(path).metadata
    last = meta.row_group(meta.num_row_groups - 1).column(2)
    torn = bytearray(path.read_bytes())
    torn[last.data_page_offset + last.total_compressed_size // 2] ^= 1
    path.write_bytes(torn)
    assert place.read_rows(run, "sequences", layer=0, head=0).num_rows == 10
    with pytest.raises(WorkspaceError, match="damaged"):
        place.read_rows(run, "sequences", layer=3, head=5)


def test_sequences_are_those_of_the_table(client: Any, workspace: Workspace) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    table = workspace.read_table(run, "head_sequences").to_pandas()
    texts = workspace.read_table(run, "head_texts").to_pandas().set_index("sequence").tokens
    mine = table[(table.layer == 1) & (table["head"] == 4) & (table.by == "norm")]
    mine = mine.sort_values(["interval", "rank"], ascending=[False, True])
    url = "/api/head-sequences?model=gpt2-mini&layer=1&head=4&by=norm"
    page = _json(client, url)
    assert page["total"] == len(mine) == 3
    assert page["next"] is None
    for found, (_, row) in zip(page["sequences"], mine.iterrows(), strict=True):
        assert found["sequence"] == row.sequence
        assert found["strength"] == pytest.approx(row.strength)
        assert len(found["tokens"]) == len(found["counts"]) == len(texts[row.sequence])
        queries = [q for q, n in enumerate(found["counts"]) for _ in range(n)]
        edges = {(q, k): w / page["scale"] for q, k, w in zip(queries, found["keys"], found["weights"], strict=True)}
        expected = {(q, k): w for q, k, w in zip(row["query"], row["key"], row["weight"], strict=True)}
        assert edges == pytest.approx(expected, abs=1e-4)
    parts = [_json(client, f"{url}&limit=1&offset={n}") for n in range(3)]
    assert [part["sequences"][0] for part in parts] == page["sequences"]
    assert [part["next"] for part in parts] == [1, 2, None]
    assert _json(client, f"{url}&offset=99999999999999")["sequences"] == []
    assert _json(client, "/api/head-sequences?model=gpt2-mini&layer=99999&head=-1")["sequences"] == []
    images = _json(client, "/api/head-sequences?model=vit-mini&layer=1&head=2")
    assert images["grid"][0] * images["grid"][1] + images["n_prefix"] == len(images["sequences"][0]["counts"])
    assert images["sequences"][0]["picture"].startswith("data:image/png;base64,")


def test_a_heads_page_has_its_account_and_tokens(client: Any, workspace: Workspace) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    page = _json(client, "/api/head?model=gpt2-mini&layer=1&head=4&by=norm")
    account = workspace.read_table(run, "head_account").to_pandas()
    mine = account[(account.layer == 1) & (account["head"] == 4)]
    assert [row["rule"] for row in page["account"]] == mine.rule.tolist()
    assert [row["share_random"] for row in page["account"]] == pytest.approx(mine.share_random.tolist())
    table = workspace.read_table(run, "head_sequences").to_pandas()
    texts = workspace.read_table(run, "head_texts").to_pandas().set_index("sequence").tokens
    sums: dict[str, float] = {}
    for _, row in table[(table.layer == 1) & (table["head"] == 4) & (table.by == "norm")].iterrows():
        for query, key, weight in zip(row["query"], row["key"], row["weight"], strict=True):
            if query and key:
                token = visible(texts[row.sequence][key])
                sums[token] = sums.get(token, 0.0) + float(weight)
    best = sorted(sums.values(), reverse=True)[:50]
    assert [row["weight"] for row in page["keys"]] == pytest.approx(best, rel=1e-5)
    assert all(row["weight"] == pytest.approx(sums[row["token"]], rel=1e-5) for row in page["keys"])
    assert page["numbers"]["prev_token_score"] is not None
    told = json.dumps(head.view(page, theme("dark")), default=lambda component: component.to_plotly_json())
    assert f"/api/head-sequences?run={run.id}&layer=1&head=4&by=rest&limit=3" in told
    assert "Tokens that look" in told
    document = client.get("/head?model=gpt2-mini&layer=1&head=4&by=norm").text
    assert f'data-gallery="/api/head-sequences?run={run.id}&amp;layer=1&amp;head=4&amp;by=norm"' in document
    of, text = re.findall(r'id="first-sequences" data-of="([^"]+)">(.*?)</script>', document)[
        0
    ]  # asked for by nobody again
    assert json.loads(text) == _json(client, html.unescape(of))
    assert '<div id="preview">' not in client.get("/head?model=nothing&layer=1").text


def test_words_are_found_in_the_kept_sequences(client: Any, workspace: Workspace) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    table = workspace.read_table(run, "head_sequences").to_pandas()
    kept = table[table.by == "weight"]
    texts = workspace.read_table(run, "head_texts").to_pandas().set_index("sequence").tokens
    page = _json(client, "/api/heads?model=gpt2-mini&q= THE w")
    holds = {s for s in set(kept.sequence) if " the w" in "".join(texts[s]).lower()}
    found = page["search"]["sequences"]
    assert {row["sequence"] for row in found} == holds
    assert 0 < len(holds) < texts.size
    for row in found:
        assert row["around"][1].lower() == " the w"
        assert row["n_heads"] == len(kept[kept.sequence == row["sequence"]].groupby(["layer", "head"]))
        best = kept[kept.sequence == row["sequence"]].strength.max()
        assert row["heads"][0]["strength"] == pytest.approx(best)
    assert "sequence=" in _told(page)
    shown = found[0]["heads"][0]
    url = f"/api/head-sequences?model=gpt2-mini&layer={shown['layer']}&head={shown['head']}&sequence={found[0]['sequence']}"
    first = _json(client, url)["sequences"][0]
    assert (first["sequence"], first["asked"]) == (found[0]["sequence"], True)
    assert _json(client, "/api/heads?model=gpt2-mini&q=zzzz")["search"]["n_sequences"] == 0
    assert _json(client, "/api/heads?model=vit-mini&q=a")["search"] is None


def test_history_is_a_number_and_runs_stand_beside_each_other(client: Any, workspace: Workspace) -> None:
    page = _json(client, "/api/heads?model=gpt2-mini&metric=entropy")
    history = _frame(workspace, "timeline", "timeline")
    mine = history[(history.layer == 3) & (history["head"] == 0)].sort_values("step")
    slope = 1000 * (mine.induction.iloc[-1] - mine.induction.iloc[0]) / (mine.step.iloc[-1] - mine.step.iloc[0])
    row = next(r for r in page["rows"] if (r["layer"], r["head"]) == (3, 0))
    assert row["slope: induction"] == pytest.approx(slope)  # of two checkpoints
    other = next(run for run in workspace.runs("heads") if run.model.name == "vit-mini")
    assert [run["run"] for run in page["beside"]["runs"]] == [other.id]
    beside = _json(client, f"/api/heads?model=gpt2-mini&metric=entropy&beside={other.id}")
    theirs = next(r for r in _json(client, "/api/heads?model=vit-mini")["rows"] if (r["layer"], r["head"]) == (1, 2))
    pair = next(r for r in beside["beside"]["rows"] if (r["layer"], r["head"]) == (1, 2))
    assert pair["other"] == theirs["entropy"]
    assert pair["difference"] == pytest.approx(pair["one"] - pair["other"])
    assert "Heads that differ most" in _told(beside)


def test_weights_likeness_and_projections_of_a_head(
    gpt2_mini: HookedModel, val_tokens: TokenDataset, tmp_path: Path
) -> None:
    place, few = Workspace(tmp_path / "w"), val_tokens.take(2)
    weights = head_weights(gpt2_mini, WeightsConfig(n_vocab=64)).save(place, gpt2_mini.ref)
    head_logits(gpt2_mini, few).save(place, gpt2_mini.ref, few.ref)
    points = head_projections(gpt2_mini, few, ProjectConfig(n_points=12)).save(place, gpt2_mini.ref, few.ref)
    reader = WorkspaceReader(place.path)
    found = clean(finder.data(reader, {"model": "gpt2-mini", "metric": "composition: k"}))
    table = place.read_table(weights, "head_composition").to_pandas()
    mine = table[(table.layer == 3) & (table["head"] == 0)]
    row = next(r for r in found["rows"] if (r["layer"], r["head"]) == (3, 0))
    assert row["composition: k"] == pytest.approx((mine.k_composition / mine.random).max())
    assert {"copying", "direct_logit", "ov_rank"} <= set(row)
    page = clean(head.data(reader, {"model": "gpt2-mini", "layer": "3", "head": "0"}))
    best = page["composition"][0]
    ends = table[((table.layer == 3) & (table["head"] == 0)) | ((table.from_layer == 3) & (table.from_head == 0))]
    ratios = ends[["q_composition", "k_composition", "v_composition"]].div(ends.random, axis=0)
    assert best["ratio"] / best["random"] == pytest.approx(ratios.max().max())
    told = json.dumps(head.view(page, theme("light")), default=lambda component: component.to_plotly_json())
    assert all(title in told for title in ("In its weights", "Heads it composes with", "What it is worth"))
    assert f"/api/head-points?run={points.id}&layer=3" in told
    drawn = place.read_table(points, "head_points").to_pandas()
    drawn = drawn[(drawn.layer == 3) & (drawn["head"] == 0)].sort_values("point")
    sent = clean(projections.data(reader, {"run": points.id, "layer": "3", "head": "0"}))
    assert [view["name"] for view in sent["views"]] == ["q", "k", "v", "z"]  # no rotary embeddings
    assert sent["views"][3]["places"] == pytest.approx(np.array([z[:2] for z in drawn.z_axes]), abs=1e-4)
    assert [p["key_at"] for p in sent["points"]] == drawn.key_at.tolist()
    assert projections.data(reader, {"layer": "77"})["points"] == []


def test_a_tree_that_lacks_a_head_and_knows_more(workspace: Workspace, tmp_path: Path) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    save_headvis(workspace, run, tmp_path / "tree")
    (tmp_path / "tree" / "heads" / "L1H1.json").unlink()
    scores = json.loads((tmp_path / "tree" / "scatter_data.json").read_text(encoding="utf-8"))
    less = [{"newer": 1, **r, "prev_token_score": None} for r in scores if (r["layer"], r["head"]) != (1, 1)]
    (tmp_path / "tree" / "scatter_data.json").write_text(json.dumps(less), encoding="utf-8")
    place = Workspace(tmp_path / "w")
    load_headvis(tmp_path / "tree").save(place)
    reader = WorkspaceReader(place.path)
    told = _told(clean(finder.data(reader, {})))
    assert "1 of 24 heads have no file" in told
    assert "left out: newer" in told
    page = clean(head.data(reader, {"layer": "1", "head": "1"}))
    assert not page["vision"]
    told = json.dumps(head.view(page, theme("light")), default=lambda component: component.to_plotly_json())
    assert "/api/head-sequences?run=" in told
    kept = clean(sequences.data(reader, {"layer": "3", "head": "0"}))
    assert kept["total"] == len(
        sequences.data(WorkspaceReader(workspace.path), {"run": run.id, "layer": "3"})["sequences"]
    )
    assert sequences.data(reader, {"layer": "1", "head": "1"})["total"] == 0

"""HeadVis's data tree: counted entry by entry, read back equal, and what is wrong with one said in a line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attlas.analyses.heads import HeadAtlas, HeadsConfig, head_atlas, load_headvis, save_headvis
from attlas.cli import main
from attlas.data.images.dataset import ImageDataset
from attlas.data.runs.record import Run
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import AttlasError, ConfigError
from attlas.interp import HookedModel

SMALL = HeadsConfig(n_top=2, n_sampled=1, n_control=0)
SIX = (
    "self_attention_score", "prev_token_score", "pattern_entropy", "qk_distance", "qk_distance_variance", "induction_score",
)  # fmt: skip


def _files(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): json.loads(p.read_text()) for p in sorted(folder.rglob("*.json"))}


@pytest.fixture(scope="module")
def atlas(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> HeadAtlas:
    text = TokenDataset.from_tokens(val_tokens.tokens[:8, :20].contiguous(), "embedded:val")
    return head_atlas(gpt2_mini, text, SMALL)


@pytest.fixture(scope="module")
def measured(atlas: HeadAtlas, gpt2_mini: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A workspace with one run, and its tree beside it."""
    folder = tmp_path_factory.mktemp("headvis")
    run = atlas.save(folder / "w", gpt2_mini, gpt2_mini)
    save_headvis(Workspace(folder / "w"), run, folder / "tree")
    return folder, run


def _derived(sequences: list[dict[str, Any]]) -> dict[str, Any]:
    """What a tree says of a head's sequences, entry by entry in plain Python."""
    edges = [0, 1, *(2**n for n in range(1, 13))]
    mass = [0.0] * 13
    tokens: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for s in sequences:
        for flat, value in zip(s["attention_indices"], s["attention_values"], strict=True):
            q, k = flat // s["seq_len"], flat % s["seq_len"]
            for part in range(13):
                mass[part] += value * (edges[part] <= abs(q - k) < edges[part + 1])
            tokens[0][s["tokens"][q]] += value
            tokens[1][s["tokens"][k]] += value
    tops = [dict(sorted(((t, round(w, 4)) for t, w in c.items() if w), key=lambda i: (-i[1], i[0]))) for c in tokens]
    return {"edges": edges, "mass": mass, "query": tops[0], "key": tops[1]}


def _assert_derived(head: dict[str, Any]) -> None:
    expected = _derived(head["sequences"])
    assert head["qk_distance_histogram"]["bin_edges"] == expected["edges"]
    np.testing.assert_allclose(head["qk_distance_histogram"]["bin_values"], expected["mass"], atol=1.01e-4)
    for side in ("query", "key"):
        found = {row["token"]: row["weight"] for row in head[f"top_{side}_tokens"]}
        assert len(found) == min(50, len(expected[side]))
        for token, weight in found.items():
            assert weight == pytest.approx(expected[side][token], abs=1.01e-4)
        assert (
            min(found.values(), default=0)
            >= max((w for t, w in expected[side].items() if t not in found), default=0) - 1e-3
        )
    assert head["statistics"]["n_samples"] == len(head["sequences"])


def test_a_tree_holds_what_the_run_found(
    measured: tuple[Path, Run], atlas: HeadAtlas, gpt2_mini: HookedModel, val_tokens: TokenDataset
) -> None:
    files = _files(measured[0] / "tree")
    config = files["config.json"]
    assert set(files) == {
        "config.json", "scatter_data.json", "server_config.json", "attributions/manifest.json",
        *(f"heads/L{layer}H{head}.json" for layer in range(4) for head in range(6)),
    }  # fmt: skip
    assert (config["model_name"], config["n_layers"], config["n_heads"], config["n_intervals"]) == (
        "gpt2-mini",
        4,
        6,
        5,
    )
    assert tuple(config["metrics"][:6]) == SIX
    assert set(config["metric_descriptions"]) == set(config["metrics"])
    scores = atlas.scores()
    for row in files["scatter_data.json"]:
        for name in config["metrics"]:
            assert row[name] == pytest.approx(scores[name][row["layer"], row["head"]], abs=5.1e-5)
    maps = gpt2_mini.capture(val_tokens.tokens[:8, :20], "blocks.3.attn.hook_pattern")["blocks.3.attn.hook_pattern"]
    head = files["heads/L3H2.json"]
    _assert_derived(head)
    seen = [float(m[1:, 1:].max()) for m in maps[:, 2]]
    counts = np.histogram(seen, np.linspace(0, 1, 51))[0]
    assert head["histogram"]["bin_values"] == counts.tolist()
    assert head["statistics"]["mean_max_activation"] == pytest.approx(np.mean(seen), abs=1e-4)
    for s in head["sequences"]:
        assert s["tokens"] == gpt2_mini.to_str_tokens(val_tokens.tokens[s["sequence_id"], :20])
        assert s["attention_indices"] == sorted(s["attention_indices"])
        weights = maps[s["sequence_id"], 2].flatten()[s["attention_indices"]]
        np.testing.assert_allclose(s["attention_values"], weights, atol=6e-5)
        assert s["max_activation"] == pytest.approx(seen[s["sequence_id"]], abs=6e-5)
    top = [s["max_activation"] for s in head["sequences"] if s["interval"] == 5]
    assert top == sorted(seen, reverse=True)[: len(top)] or top == pytest.approx(
        sorted(seen)[::-1][: len(top)], abs=1e-4
    )


def test_a_run_comes_back_from_its_tree(measured: tuple[Path, Run], atlas: HeadAtlas, tmp_path: Path) -> None:
    tree = load_headvis(measured[0] / "tree")
    assert tree.notes == []
    run = tree.save(tmp_path / "w")
    again = Workspace(tmp_path / "w")
    save_headvis(again, again.run(run.id), tmp_path / "tree")
    assert _files(tmp_path / "tree") == _files(measured[0] / "tree")
    before, after = atlas.tables(), tree.tables()
    for name in (*SIX, "mean_activation", "unexplained"):
        np.testing.assert_allclose(after["heads"][name], before["heads"][name], atol=5.1e-5)
    assert after["heads"]["n_queries"].null_count == 24
    assert after["head_histograms"].equals(before["head_histograms"])
    rows = [row for row in before["head_sequences"].to_pylist() if row["by"] == "weight"]
    for mine, theirs in zip(after["head_sequences"].to_pylist(), rows, strict=True):
        assert mine["strength"] == pytest.approx(theirs["strength"], abs=5.1e-5)
        assert sorted(zip(mine["query"], mine["key"], mine["weight"], strict=True)) == sorted(
            zip(theirs["query"], theirs["key"], theirs["weight"], strict=True)
        )
        assert [mine[n] for n in ("layer", "head", "interval", "rank", "sequence")] == [
            theirs[n] for n in ("layer", "head", "interval", "rank", "sequence")
        ]


def _number(low: float = 0, high: float = 20) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda value: round(value, 4))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Files of a small tree as HeadVis writes them: some heads, several lengths, empty maps, scores that are null."""
    texts = {
        i: draw(st.lists(st.sampled_from(["a", "b", " ", "\n", "é", ""]), min_size=1, max_size=5)) for i in range(3)
    }
    heads = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=3, unique=True))
    heads = sorted(heads)
    found: dict[str, Any] = {"server_config.json": {}, "attributions/manifest.json": {}}
    scatter = [{"layer": layer, "head": head} | {n: draw(st.none() | _number()) for n in SIX} for layer, head in heads]
    scatter[0]["qk_distance"] = draw(_number())
    for layer, head in heads:
        sequences = []
        for number in draw(st.lists(st.sampled_from(sorted(texts)), unique=True)):
            length = len(texts[number])
            indices = sorted(draw(st.lists(st.integers(0, length**2 - 1), unique=True)))
            values = [draw(_number(0.005, 1)) for _ in indices]
            sequences.append(
                {"sequence_id": number, "interval": draw(st.integers(1, 3)), "tokens": texts[number], "seq_len": length,
                 "attention_indices": indices, "attention_values": values, "max_activation": draw(_number(0, 1))}
            )  # fmt: skip
        counts = draw(st.lists(st.integers(0, 9), min_size=50, max_size=50))
        found[f"heads/L{layer}H{head}.json"] = {
            "sequences": sequences,
            "histogram": {"bin_edges": [round(i / 50, 4) for i in range(51)], "bin_values": counts},
            "statistics": {"n_samples": len(sequences), "mean_max_activation": draw(st.none() | _number(0, 1))},
        }
    found["scatter_data.json"] = scatter
    found["config.json"] = {
        "model_name": "some/model", "np_model_id": "m", "dataset_name": "d", "heads": [list(h) for h in heads],
        "n_layers": 3, "n_heads": 4, "n_intervals": 3, "metrics": list(SIX), "metric_descriptions": {},
        "head_data_pattern": "L{layer}H{head}.json", "has_umap": False, "umap_heads": [],
        "pipeline_config": {"seq_len": 512},
    }  # fmt: skip
    return found


def _written(files: dict[str, Any], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=trees())
def test_any_tree_comes_back_equal(files: dict[str, Any], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    tree = load_headvis(_written(files, tmp_path / "x" / "given"))
    workspace = Workspace(tmp_path / "x" / "w")
    run = tree.save(workspace)
    save_headvis(workspace, run, tmp_path / "x" / "again")
    again = _files(tmp_path / "x" / "again")
    for name, content in again.items():
        if name.startswith("heads/"):
            _assert_derived(content)
            for key in ("qk_distance_histogram", "top_query_tokens", "top_key_tokens"):
                del content[key]
    assert again == files
    assert tree.tables()["heads"].num_rows == 12


@pytest.fixture
def tree(measured: tuple[Path, Run], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(measured[0] / "tree", tmp_path / "tree"))


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def test_missing_heads_and_newer_fields_are_said(tree: Path, tmp_path: Path) -> None:
    (tree / "heads" / "L1H2.json").unlink()
    _edit(tree / "scatter_data.json", lambda rows: [{**row, "novel_score": 1} for row in rows if row["layer"] != 2])
    _edit(tree / "heads" / "L0H0.json", lambda head: head.update(umap=[1]))
    _edit(tree / "config.json", lambda config: config.update(version=9, metrics=[*config["metrics"], "novel_score"]))
    found = load_headvis(tree)
    said = "\n".join(found.notes)
    for words in ("novel_score", "lacks 6 of 24 heads", "1 of 24 heads have no file (L1H2.json", "left out: umap"):
        assert words in said
    table = found.tables()["heads"].to_pylist()
    assert [np.isnan(row["pattern_entropy"]) for row in table] == [row["layer"] == 2 for row in table]
    assert {(row["layer"], row["head"]) for row in found.sequences} == {*np.ndindex(4, 6)} - {(1, 2)}
    run = found.save(tmp_path / "w")
    save_headvis(Workspace(tmp_path / "w"), run, tmp_path / "again")  # what is empty stays empty
    again = _files(tmp_path / "again")
    assert again["config.json"]["version"] == 9
    assert again["heads/L1H2.json"]["sequences"] == []
    assert [row["qk_distance"] is None for row in again["scatter_data.json"]] == [row["layer"] == 2 for row in table]


def _head_with(**values: Any) -> Callable[[Path], None]:
    return lambda tree: _edit(tree / "heads" / "L0H0.json", lambda head: head["sequences"][0].update(values))


def _config_with(**values: Any) -> Callable[[Path], None]:
    return lambda tree: _edit(tree / "config.json", lambda config: config.update(values))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: (t / "config.json").unlink(), "no HeadVis tree"),
        (lambda t: (t / "config.json").write_text("{"), "config.json' is not JSON"),
        (lambda t: (t / "scatter_data.json").unlink(), "scatter_data.json' cannot be read"),
        (lambda t: (t / "scatter_data.json").write_text("{}"), "list of objects"),
        (lambda t: _edit(t / "scatter_data.json", lambda rows: [{"head": 1}, *rows]), "no layer and head"),
        (lambda t: _edit(t / "scatter_data.json", lambda rows: [{**rows[0], "qk_distance": "x"}]), "'x' is no number"),
        (lambda t: _edit(t / "scatter_data.json", lambda rows: [{"layer": 0, "head": 0}]), "holds no number"),
        (_config_with(model_name=None), "names no model"),
        (_config_with(heads=[]), "must list"),
        (_config_with(heads=[[0, "x"]]), "must list"),
        (_config_with(n_intervals=0), "'n_intervals' is 0"),
        (_config_with(n_layers=1 << 30), "are no model's"),
        (_config_with(head_data_pattern="../L{layer}.json"), "plain file name"),
        (lambda t: (t / "heads" / "L0H0.json").write_text("[]"), "no list 'sequences'"),
        (_head_with(attention_indices=[0]), "1 attention_indices and"),
        (_head_with(attention_indices=[400], attention_values=[0.1]), "outside of 20 × 20"),
        (_head_with(attention_indices=[3], attention_values=[float("nan")]), "no finite number"),
        (_head_with(interval=6), "interval 6 is not one of 1 … 5"),
        (_head_with(tokens=["a"]), "its tokens must be 20 texts"),
        (_head_with(sequence_id="five"), "no whole number"),
        (lambda t: _edit(t / "heads" / "L0H0.json", lambda h: h["sequences"][0].pop("seq_len") and None), "lacks 'seq_len'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tree_is_one_line(spoil: Callable[[Path], Any], said: str, tree: Path) -> None:
    spoil(tree)
    with pytest.raises(ConfigError) as caught:
        load_headvis(tree)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_that_no_tree_can_hold(
    vit_mini: HookedModel, glyphs: ImageDataset, measured: tuple[Path, Run], tmp_path: Path
) -> None:
    run = head_atlas(vit_mini, glyphs.take(3), SMALL).save(tmp_path / "w", vit_mini, glyphs)
    with pytest.raises(ConfigError, match="of images"):
        save_headvis(Workspace(tmp_path / "w"), run, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    with Workspace(tmp_path / "w").begin("entropy", model=vit_mini.ref) as other:
        pass
    with pytest.raises(AttlasError, match="run of entropy"):
        save_headvis(Workspace(tmp_path / "w"), other.record, tmp_path / "tree")


def test_the_commands(measured: tuple[Path, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = measured
    assert main(["export", "headvis", "--out", str(tmp_path / "t"), "-w", str(folder / "w"), "--run", run.id]) == 0
    assert _files(tmp_path / "t") == _files(folder / "tree")
    assert main(["export", "headvis", "--out", str(tmp_path / "t"), "-w", str(folder / "w")]) == 2
    capsys.readouterr()
    assert main(["heads", "import", str(tmp_path / "t"), "-w", str(tmp_path / "w"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_heads"], found["imported_from"]) == (24, "HeadVis")
    assert Workspace(tmp_path / "w").run(found["run"]).model.name == "gpt2-mini"
    assert main(["heads", "import", str(tmp_path), "-w", str(tmp_path / "w")]) == 2
    assert main(["export", "headvis", "--out", str(tmp_path / "u"), "-w", str(tmp_path / "none")]) == 2
    assert "holds no run over heads" in capsys.readouterr().err

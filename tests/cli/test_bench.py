"""`attlas bench`: ours beside the peers that are installed, in one process."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from attlas.cli import main
from attlas.dashboard.app import create_app
from attlas.interp import load_model
from attlas.saes import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are measured with smaller matrices: a little low, and thirty times sooner."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setitem(importlib.import_module("peaks").SIZES, False, (512, 768))


def test_capture_beside_transformer_lens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("capture"), "SHAPES", {"gpt2-mini": (8, 256)})
    assert main(["bench", "capture", "--rounds", "2", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)["capture"]["results"][0]
    ours, peer = result["rows"]
    assert 0 < ours["of_peak_flops"] < 1.5
    assert peer["name"].startswith("TransformerBridge")
    assert ours["ratio"] == 1
    assert peer["ratio"] > 0
    assert ours["low"] <= ours["median"] <= ours["high"]
    assert "x ours" in captured.err


def test_rates_are_shares_of_a_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    common, peaks = importlib.import_module("common"), importlib.import_module("peaks")
    monkeypatch.setattr(common, "flops_per_s", lambda: 4e9)
    monkeypatch.setattr(common, "bytes_per_s", lambda: 1e9)
    timing = common.Timing("ours", median=2.0, low=1.0, high=3.0, minimum=1.0, ratio=1.0, peak_mb=0.0)
    (row,) = common.report("a job", [timing], flops=2e9, size=5e8)["rows"]
    assert (row["gflops"], row["of_peak_flops"]) == (2, 0.5)
    assert (row["gbytes_per_s"], row["of_peak_bytes"]) == (0.5, 0.5)
    assert peaks.flops_per_s() > 1e9  # any machine at all
    assert peaks.bytes_per_s() > 1e8


def test_head_ablation_finds_what_whole_passes_find() -> None:
    """The benchmark asserts that effects agree before it gives a time."""
    bench = importlib.import_module("head_ablation")
    for name, shape in (("gpt2-mini", (2, 32)), ("vit-mini", (4, 0))):
        found = bench.measure(bench.load_model(name, device="cpu"), *shape, rounds=1)
        assert [row["name"] for row in found["rows"]] == ["attlas head_effects", "a forward pass a head"]
        assert found["bound"] == pytest.approx(1.6)


def test_labels_of_three_dictionaries_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module("feature_labels")
    monkeypatch.setattr(bench, "environment", dict)
    tiny = "--seeds 0 --checkpoints step-00250 --train-tokens 1024 --d-sae 24 --k 6 --tokens 1024 --draws 4 --quiet"
    found = bench.run(argv=[*tiny.split(), "--dictionaries", "20"])
    assert [row["dictionary"] for row in found["rows"]] == ["trained", "random", "shuffled"]
    for row in found["rows"]:
        assert 0 < row["n_scored"] <= 24
        assert sum(row["labels"].values()) <= row["n_scored"]
    assert len(found["surveys"]) == 2 * 6
    found["rows"].append({**found["rows"][0], "seed": 1, "n_scored": 50, "labels": dict.fromkeys(bench.FAMILIES, 5)})
    found["rows"][0] |= {"n_scored": 100, "labels": dict.fromkeys(bench.FAMILIES, 1)}
    lines = list(bench.tables(found))
    assert "| step-00250 | trained | 100 / 50 | 5.5 % (1.0 to 10.0) |" in lines[2]
    assert all(row["n_excess"] >= row["n_specific"] for row in found["rows"])


def test_labels_of_every_architecture_width_and_k_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("feature_labels")
    asked = bench.arguments(["--archs", "topk", "jumprelu", "--d-sae", "24", "32", "--k", "4", "6"])
    assert bench.variants(asked) == [
        *(("topk", width, k) for width in (24, 32) for k in (4, 6)),
        *(("jumprelu", width, 4) for width in (24, 32)),  # k chooses nothing there
    ]


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "encod"]) == 2
    assert "did you mean 'encode'" in capsys.readouterr().err
    assert main(["bench", "capture", "--rounds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["bench", "encode", "--busy", "2"]) == 2
    assert "measures sae_step and capture alone" in capsys.readouterr().err


def test_every_contestant_of_the_step_runs_and_ours_learns() -> None:
    found = importlib.import_module("sae_step").contestants(16, 64, 4, 128)
    assert any(name.startswith("SAELens") for name in found)
    for run in found.values():
        run()
    losses = [float(found["attlas TopKStep"]().loss) for _ in range(40)]
    assert losses[-1] < losses[0]


def test_every_architecture_beside_its_peer_and_beside_spinning_processes() -> None:
    architectures, busy = importlib.import_module("sae_architectures"), importlib.import_module("busy")
    assert set(architectures.ARCHITECTURES) == set(ARCHITECTURES)
    for arch in architectures.ARCHITECTURES:
        pair = architectures.pair(arch, 16, 128, 4, 64)
        assert list(pair) == [f"attlas {arch}", f"SAELens {arch}"]
        for run in pair.values():
            run()
        terms = [pair[f"attlas {arch}"]() for _ in range(2)][-1]
        if arch == "jumprelu":
            assert 2 < float(terms.l0) < 8  # about k
    timings = busy.compare_busy({"ours": lambda: sum(range(10**4)), "theirs": lambda: sum(range(10**5))}, 1, rounds=3)
    assert timings[0].idle_ratio == timings[0].busy_ratio == 1
    assert timings[1].idle_ratio > 1
    assert timings[1].idle < 1
    report = busy.report_busy("sums", timings, 1)
    assert [row["name"] for row in report["rows"]] == ["ours", "theirs"]
    assert busy.asked(["x", "--busy", "2"]) == 2
    assert busy.asked(["x"]) == 0


def test_a_pruned_model_beside_the_whole_one() -> None:
    found = importlib.import_module("pruned_speed").run(rounds=1, model="gpt2-mini", n_drop=1)
    assert len(found["results"]) == 2
    for result in found["results"]:
        assert [row["name"] for row in result["rows"]] == ["pruned, compact", "pruned, stock", "whole model"]
        assert all(row["tokens_per_s"] > 0 for row in result["rows"])
    compact, stock, whole = found["models"]
    assert compact["parameters"] < stock["parameters"] == whole["parameters"]
    assert 0 < compact["peak_mb"] < 2000
    assert compact["kv_bytes"] * 4 == stock["kv_bytes"] * 3 == whole["kv_bytes"] * 3
    assert compact["loss"] == pytest.approx(stock["loss"], abs=1e-4)
    assert compact["loss"] > whole["loss"]
    assert {row["task"] for row in found["tasks"]} == {"ioi", "induction-natural"}


def test_flops_of_pruned_vits_are_counted_and_checkpoints_timed() -> None:
    found = importlib.import_module("pruned_vit").run(rounds=1, n_heads=3, n_images=8, passes=1)
    compact, stock, block, whole = found["models"]
    config = load_model("vit-mini", device="cpu").hf.config
    width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    patches, cell = (config.image_size // config.patch_size) ** 2, config.num_channels * config.patch_size**2
    tokens = patches + 1
    attention = 2 * tokens * 4 * width**2 + 4 * tokens**2 * width  # q, k, v, output; scores and values
    layer = attention + 4 * tokens * width * hidden
    ends = 2 * patches * cell * width + 2 * width * len(config.id2label)
    assert whole["flops"] == stock["flops"] == ends + config.num_hidden_layers * layer
    assert block["flops"] == whole["flops"] - layer
    assert compact["flops"] == whole["flops"] - 3 * attention // heads
    assert compact["parameters"] < stock["parameters"] == whole["parameters"]
    assert compact["accuracy"] == stock["accuracy"]
    assert [result["rows"][0]["batch"] for result in found["results"]] == [1, 32]
    for result in found["results"]:
        assert [row["name"] for row in result["rows"]] == [row["name"] for row in found["models"]]
        for row in result["rows"]:
            assert row["images_per_s"] == pytest.approx(row["batch"] * 1e3 / row["ms_per_batch"])


def test_exact_and_shared_nulls_place_scores_alike() -> None:
    bench = importlib.import_module("null_accuracy")
    value = np.array([0.5, 0.2])
    null = np.array([[0.1, 0.5, 0.9, np.nan], [0.3, 0.4, 0.5, 0.6]])
    assert bench.percentile(value, null).tolist() == [0.5, 0.0]
    tiny = "--train-tokens 4096 --d-sae 32 --tokens 2048 --draws 20 --features 3 --quiet"
    found = bench.measure(bench.arguments(tiny.split()))
    assert found["n_features"] == 3
    for row in found["scores"].values():
        assert all(0 <= low <= high <= 1 for low, high in (row["group"], row["used"], row["halves"]))
        assert row["beyond_both"] <= min(row["beyond_exact"], row["beyond_used"])
    assert found["scores"]["local"]["used"][0] < 0.25, "of the same distribution, up to twenty draws"
    assert len(list(bench.table(found))) == 6


def test_a_drawn_run_of_heads_is_what_the_page_reads(tmp_path: Path) -> None:
    bench = importlib.import_module("head_page")
    run = bench.write(tmp_path, 2, 3, n_sequences=12, n_tokens=40)
    page = create_app(tmp_path).server.test_client()
    told = [page.get(f"/api/head-sequences?run={run}&layer={at}&head=2").get_json() for at in (0, 1)]
    assert told[0]["sequences"] == told[1]["sequences"], "every head has the rows of one"
    assert [row["interval"] for row in told[0]["sequences"]] == [4] * 10 + [1, 0]
    assert {row["sequence"] for row in told[0]["sequences"]} == set(range(12))
    for row in told[0]["sequences"]:
        assert len(row["tokens"]) == len(row["counts"]) == 40
        assert 1 <= min(row["counts"]) <= max(row["counts"]) <= bench.MOST_KEYS
        query = np.repeat(np.arange(40), row["counts"])
        assert (np.array(row["keys"]) <= query).all()
        assert len(set(zip(query, row["keys"], strict=True))) == len(query), "a query has each key once"
    assert page.get("/api/head?model=large&layer=1&head=2").get_json()["numbers"]["layer"] == 1
    assert page.get("/api/head-sequences?model=large&layer=2&head=0").get_json()["total"] == 0

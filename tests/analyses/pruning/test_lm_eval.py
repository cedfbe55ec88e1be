"""lm-evaluation-harness tasks before and after pruning; most need the extra lm-eval."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attlas.analyses.pruning.lm_eval.prompts import EMBEDDED, text_task, write_prompts
from attlas.analyses.pruning.lm_eval.tasks import LMEvalConfig, LMEvalTasks, compared
from attlas.analyses.pruning.side_effects.behaviours import task_values
from attlas.analyses.pruning.surgery import build
from attlas.cli import main
from attlas.errors import ConfigError, MissingExtraError, TextDataError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"
)


def _definition(folder: Path, name: str, rows: list[dict[str, Any]] | None, **more: Any) -> None:
    """A task of one's own, of two-way choice; without rows its data is on a hub."""
    source: dict[str, Any] = {"dataset_path": "nobody/nothing"}
    if rows is not None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"test": str(folder / f"{name}.jsonl")}
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
    task = {"task": name, **source, "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "q"}
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    task |= {"doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": metrics, **more}
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def test_without_the_extra(
    gpt2_mini: HookedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("attlas.analyses.pruning.lm_eval.tasks.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'attlas\[lm-eval\]'"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("attlas_ioi",)))
    argv = ["prune", "--drop", "attn:1", "--lm-eval", "attlas_ioi", "--workspace", str(tmp_path / "w")]
    assert main(argv) == 2
    assert "attlas[lm-eval]" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ()}, "no lm-eval task is named"),
        ({"limit": 0}, "limit 0"),
        ({"n_prompts": 0}, "n_prompts 0"),
        ({"folder": Path("nowhere")}, "'nowhere' is no folder"),
    ],
)
def test_bad_config(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LMEvalConfig(**{"tasks": ("attlas_ioi",), **arguments})


@pytest.mark.parametrize("name", EMBEDDED)
def test_prompts_read_back_as_the_same_tokens(gpt2_mini: HookedModel, tmp_path: Path, name: str) -> None:
    task = text_task(gpt2_mini, name, 12)
    write_prompts(gpt2_mini, name, tmp_path, 12)
    rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows) == len(task) == 12
    for index, row in enumerate(rows):
        for choice, answer in zip(row["choices"], (task.right, task.wrong), strict=True):
            ids = gpt2_mini.tokenizer.encode(row["context"] + choice, add_special_tokens=False)
            assert ids == [*task.tokens[index].tolist(), int(answer[index, 0])]
    assert [t.tolist() for t in text_task(gpt2_mini, name, 5).tokens] == [t.tolist() for t in task.tokens[:5]]


@needs_lm_eval
def test_embedded_tasks_agree_with_our_own_metric(gpt2_mini: HookedModel) -> None:
    """The same prompts by two ways: lm-eval's text and log-likelihoods of the compact model, our tokens and a mask."""
    drop, pad = Drop(attn=(2,)), gpt2_mini.tokenizer.pad_token
    tasks = LMEvalTasks(gpt2_mini, LMEvalConfig(tuple(EMBEDDED), n_prompts=24))
    before, after = tasks.run(gpt2_mini.hf), tasks.run(build(gpt2_mini, drop)[0])
    rows = {row["task"]: row for row in compared(before, after)}
    assert set(rows) == set(EMBEDDED)
    for name, row in rows.items():
        task = text_task(gpt2_mini, name, 24)
        dense = task_values(gpt2_mini, task).numpy()
        with masked(gpt2_mini, drop):
            pruned = task_values(gpt2_mini, task).numpy()
        for result, ours in ((before, dense), (after, pruned)):
            samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
            theirs = [float(s["filtered_resps"][0][0]) - float(s["filtered_resps"][1][0]) for s in samples]
            np.testing.assert_allclose(theirs, ours, atol=1e-4)
        right = np.stack([dense > 0, pruned > 0]).astype(float)
        assert (row["before"], row["after"]) == tuple(right.mean(1))
        assert row["stderr_before"] == pytest.approx(right[0].std(ddof=1) / 24**0.5)
        assert row["delta_stderr"] == pytest.approx((right[1] - right[0]).std(ddof=1) / 24**0.5)
        assert row["n"] == 24
    assert gpt2_mini.tokenizer.pad_token == pad


@needs_lm_eval
def test_a_folder_of_tasks_of_ones_own(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    rows = [{"q": f"{n} and {n} and", "choices": [str(n), str(n + 1)], "gold": 0} for n in range(6)]
    _definition(tmp_path, "twice", rows)
    tasks = LMEvalTasks(gpt2_mini, LMEvalConfig(("tw*",), folder=tmp_path, limit=4))
    result = tasks.run(gpt2_mini.hf)
    (row,) = compared(result, tasks.run(gpt2_mini.hf))
    assert (row["task"], row["metric"], row["n"], row["delta"], row["delta_stderr"]) == ("twice", "acc", 4, 0, 0)


@needs_lm_eval
def test_documents_longer_than_the_window_are_told(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    _definition(tmp_path, "long", [{"q": "word " * 400, "choices": ["a", "b"], "gold": 1}])
    with pytest.warns(UserWarning, match="longer than the model's 256 tokens"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("long",), folder=tmp_path)).run(gpt2_mini.hf)


@needs_lm_eval
def test_bad_tasks(
    gpt2_mini: HookedModel, vit_mini: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    _definition(tmp_path, "far", None)
    _definition(tmp_path, "crooked", [{"q": "a", "choices": ["b"], "gold": 0}], output_type="sculpture")
    with pytest.raises(TextDataError, match=r"nobody/nothing.*local data"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("far",), folder=tmp_path))
    with pytest.raises(ConfigError, match="cannot load crooked"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("crooked",), folder=tmp_path))
    _definition(tmp_path, "broken", [])
    (tmp_path / "broken.jsonl").write_text("{not json")
    with pytest.raises(TextDataError, match="cannot load broken"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("broken",), folder=tmp_path))
    _definition(tmp_path, "unfit", [{"q": "a", "choices": ["b", "c"], "gold": 0}], doc_to_target="{{nothing.here}}")
    with pytest.raises(ConfigError, match="unfit"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("unfit",), folder=tmp_path)).run(gpt2_mini.hf)
    with pytest.raises(ConfigError, match="no task 'attlas_io'; did you mean 'attlas_ioi'"):
        LMEvalTasks(gpt2_mini, LMEvalConfig(("attlas_io",)))
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        LMEvalTasks(vit_mini, LMEvalConfig(("attlas_ioi",)))


@needs_lm_eval
@pytest.mark.usefixtures("quick_strangers")
def test_command_line_and_model_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["prune", "--drop", "attn:2", "--lm-eval", "attlas_ioi", "--n-prompts", "8", "--n-tokens", "1024"]
    argv += ["--out", str(tmp_path / "out"), "--workspace", str(tmp_path / "w")]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["lm_eval"]
    assert (row["task"], row["metric"], row["n"]) == ("attlas_ioi", "acc", 8)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| lm-eval attlas_ioi, acc | {row['before']:.4g} ± " in card
    assert main([*argv, "--force"]) == 0
    assert "attlas_ioi, acc" in capsys.readouterr().out

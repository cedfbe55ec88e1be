"""Timelines over revisions of a Pythia-shaped model, from folders named by revision: order, memory, going on, near names."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from attlas.analyses.attention import head_timeline
from attlas.analyses.attention.config import EntropyConfig, TimelineConfig
from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.attention.head_timeline import TimelineResult
from attlas.analyses.common import checkpoints as over
from attlas.analyses.redundancy import HeadEffectsConfig, head_effects, module_effects, redundancy, redundancy_timeline
from attlas.cli import main
from attlas.data.checkpoints import find_checkpoints, find_revisions
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import CheckpointError, ConfigError
from attlas.interp import load_model

REVISIONS = ("step143000", "step1000", "step16", "step4000")  # not in order
QUICK = TimelineConfig(n_repeats=1, repeat_length=12, n_draws=2)
TEXT = TokenDataset.from_tokens(torch.randint(5, 4000, (4, 24), generator=torch.Generator().manual_seed(1)), "random")


@pytest.fixture(scope="module")
def pythia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pythia-160m in small, trained for as many steps as never: each revision has its own random weights."""
    root = tmp_path_factory.mktemp("hub") / "pythia-160m"
    config = GPTNeoXConfig(
        vocab_size=4096, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, rotary_pct=0.25,
        max_position_embeddings=64, use_parallel_residual=True,
    )  # fmt: skip
    for seed, revision in enumerate(REVISIONS):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0, 0.3)
        model.save_pretrained(root / revision)
        for path in EMBEDDED_DIR.glob("gpt2-mini/*token*.json"):
            shutil.copy(path, root / revision)
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("ATTLAS_CACHE", str(tmp_path / "cache"))


def test_revisions_come_in_order_of_their_steps(pythia: Path) -> None:
    found = find_revisions(str(pythia), REVISIONS)
    assert [c.step for c in found] == [16, 1000, 4000, 143000]
    assert [c.name for c in found] == ["step16", "step1000", "step4000", "step143000"]
    assert [c.folder for c in found] == [pythia / c.name for c in found]
    assert [c.step for c in find_checkpoints(pythia)] == [c.step for c in found]


@pytest.fixture(scope="module")
def whole(pythia: Path) -> TimelineResult:
    """All four, measured at once, with one model in memory at a time."""
    alive: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert not [ref for ref in alive if ref() is not None], "the model before is still in memory"
        model = load_model(*args, **kwargs)
        alive.append(weakref.ref(model.hf))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over, "load_model", watched)
        found = find_revisions(str(pythia), REVISIONS)
        result = head_timeline.timeline(found, lambda _: TEXT, QUICK, device="cpu")
    assert len(alive) == 4
    return result


def test_each_is_measured_as_by_itself(whole: TimelineResult, pythia: Path) -> None:
    assert whole.model.name == f"{pythia}@step143000"
    for at in (0, 3):
        model = load_model(whole.checkpoints[at].folder, device="cpu")
        alone = entropy(model, TEXT, EntropyConfig(batch_size=16)).columns
        np.testing.assert_array_equal(whole.columns["entropy"][at], alone["entropy"])
        np.testing.assert_array_equal(whole.columns["sink_mass"][at], alone["sink_mass"])
    assert len({float(x) for x in whole.losses["loss"]}) == 4
    assert set(whole.table()["checkpoint"].to_pylist()) == set(REVISIONS)


def test_a_stopped_timeline_goes_on(whole: TimelineResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measure, measured = head_timeline._measure, []

    def stops(model: Any, *args: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(model.weight_hash)
        return measure(model, *args)

    def goes_on(model: Any, *args: Any) -> Any:
        measured.append(model.weight_hash)
        return measure(model, *args)

    opening = over.Opening("cpu", state=tmp_path / "state")
    monkeypatch.setattr(head_timeline, "_measure", stops)
    with pytest.raises(KeyboardInterrupt):
        head_timeline.timeline(whole.checkpoints, lambda _: TEXT, QUICK, opening=opening)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["1000.state", "16.state"]
    monkeypatch.setattr(head_timeline, "_measure", goes_on)
    again = head_timeline.timeline(whole.checkpoints, lambda _: TEXT, QUICK, opening=opening)
    assert len(measured) == len(set(measured)) == 4  # none twice
    assert again.table().equals(whole.table())
    other = TimelineConfig(n_repeats=1, repeat_length=12, n_draws=3)
    with pytest.raises(ConfigError, match="is the state of another pass"):
        head_timeline.timeline(whole.checkpoints, lambda _: TEXT, other, opening=opening)
    over.forget(opening)
    assert not (tmp_path / "state").exists()


def test_redundancy_modules_and_heads_over_revisions(pythia: Path, tmp_path: Path) -> None:
    found = find_revisions(str(pythia), ("step16", "step4000"))
    heads = HeadEffectsConfig(("zero", "taylor"), n_bootstrap=5)
    model = load_model(found[1].folder, device="cpu")
    scores, alone = redundancy(model, TEXT).scores, module_effects(model, TEXT).delta
    zero = head_effects(model, TEXT, heads).mean("zero")
    for _ in range(2):  # measured, and from what was kept
        opening = over.Opening("cpu", state=tmp_path)
        result = redundancy_timeline(found, lambda _: TEXT, opening=opening, heads=heads, alone=True)
        np.testing.assert_allclose(result.scores[1], scores, atol=1e-12)
        np.testing.assert_allclose(result.heads[1].mean("zero"), zero, atol=1e-9)
        np.testing.assert_allclose(result.modules[1].delta, alone, atol=1e-9)
        assert np.abs(result.heads[0].mean("zero") - zero).max() > 1e-3
    tables = result.tables()
    assert tables["head_effects_timeline"].num_rows == 2 * 2 * 2 * 3  # checkpoints, ablations, layers, heads
    assert tables["module_effects_timeline"].num_rows == 2 * 2 * 3
    assert set(tables["head_effects_timeline"]["checkpoint"].to_pylist()) == {"step16", "step4000"}


@pytest.mark.parametrize(
    ("revisions", "match"),
    [
        (("step16", "step400"), r"has no revision 'step400'; did you mean 'step4000'"),
        (("step16", "zzz9"), r"has no revision 'zzz9'; folders of '.*': step1000, step143000, step16, step4000"),
        (("step16",), "two or more revisions, each once; given: step16"),
        (("step16", "step16"), "each once"),
        (("step16", "main"), "revision 'main' has no step in its name; give --final-step"),
    ],
)
def test_a_revision_that_does_not_exist(revisions: tuple[str, ...], match: str, pythia: Path) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        find_revisions(str(pythia), revisions)
    assert "\n" not in str(caught.value)


def test_the_hub_and_its_cache_say_which_revisions_there_are(
    pythia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "EleutherAI/pythia-160m"
    refs = tmp_path / "hf" / "models--EleutherAI--pythia-160m" / "refs"
    refs.mkdir(parents=True)
    (refs / "step1000").write_text("f0")
    with pytest.raises(
        CheckpointError, match=r"'step1001' .* could not be fetched \(OSError\); did you mean 'step1000'"
    ):
        find_revisions(model, ("step1001", "step4000"))
    known = [SimpleNamespace(name=name) for name in ("main", *REVISIONS)]
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", lambda _: SimpleNamespace(branches=known, tags=[]))
    with pytest.raises(CheckpointError, match=r"has no revision 'step1001'; did you mean 'step1000'"):
        find_revisions(model, ("step1001", "step4000"))
    fetched: list[str] = []

    def snapshot(repository: str, revision: str, allow_patterns: Any = None, local_files_only: bool = False) -> str:
        if local_files_only and revision != "step16":  # that one is in the cache
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        fetched.append(revision)
        return str(pythia / revision)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    copy = tmp_path / "cache" / "models" / model / "step143000"
    shutil.copytree(pythia / "step143000", copy)
    found = find_revisions(model, ("step16", "step1000", "step143000"))
    assert fetched == ["step16", "step1000"]
    assert found[-1].folder == copy
    assert found[0].model_name == f"{model}@step16"


def test_command_line(pythia: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--n-tokens", "64", "--seq-len", "32", "-w", str(tmp_path / "w"), "--json", "--device", "cpu"]
    quick = ["--n-repeats", "1", "--repeat-length", "12", "--n-draws", "2"]
    some = ["--model", str(pythia), "--revisions", "step4000", "step16"]
    assert main(["entropy", "timeline", *some, *quick, *common]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [16, 4000]
    assert not list((tmp_path / "w" / ".timeline").glob("*"))
    assert main(["redundancy", *some, "--heads", *common]) == 0
    workspace = Workspace(tmp_path / "w")
    rows = workspace.read_table(workspace.runs("timeline")[0], "timeline").to_pylist()
    assert {row["checkpoint"] for row in rows} == {"step16", "step4000"}
    run = workspace.runs("redundancy_timeline")[0]
    assert workspace.read_table(run, "head_effects_timeline").num_rows == 2 * 5 * 6
    capsys.readouterr()
    assert main(["entropy", "timeline", *some[:3], "step16", "step9", *common]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("has no revision 'step9'; did you mean 'step16', 'step4000', 'step1000'?")
    )

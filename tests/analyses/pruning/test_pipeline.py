"""Pruning from Python: what is chosen, measured and kept is what its parts say on their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attlas.analyses.pruning import Budget, Drop, PruneConfig, PruneResult, masked, prune, select
from attlas.analyses.pruning.scores import Scores
from attlas.analyses.registry import TABLES
from attlas.data.text import TokenDataset, load_tokens
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


@pytest.fixture(scope="module")
def text(gpt2_mini: HookedModel) -> TokenDataset:
    return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=32, n_tokens=16 * 32)


@pytest.fixture(scope="module")
def result(gpt2_mini: HookedModel, text: TokenDataset) -> PruneResult:
    return prune(gpt2_mini, text, PruneConfig(target="mlp", n=1, heal_steps=1))


def _loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean cross-entropy in float64, by gathering log-probabilities."""
    log_p = logits.double().log_softmax(-1)[:, :-1]
    return -float(log_p.gather(-1, tokens[:, 1:, None]).mean())


def test_half_of_the_data_chooses_and_the_other_half_tells(
    gpt2_mini: HookedModel, text: TokenDataset, result: PruneResult
) -> None:
    chosen_on, told_on = text.split(1 / 2, 0)
    assert result.calibration is not None
    assert (result.calibration.hash, result.evaluation.hash) == (chosen_on.hash, told_on.hash)
    scores = Scores(gpt2_mini, chosen_on).of("mlp")
    assert result.drop == Drop(mlp=(min(scores, key=lambda unit: scores[unit])[1],))
    assert result.names == (f"mlp.{result.drop.mlp[0]}",)


def test_rows_are_the_losses_of_three_models(gpt2_mini: HookedModel, result: PruneResult) -> None:
    assert isinstance(result.evaluation, TokenDataset)
    tokens = result.evaluation.tokens
    with torch.no_grad():
        whole = _loss(gpt2_mini(tokens), tokens)
        with masked(gpt2_mini, result.drop):
            pruned = _loss(gpt2_mini(tokens), tokens)
        healed = _loss(result.hf(tokens, use_cache=False).logits, tokens)
    assert [row["loss"] for row in result.rows] == pytest.approx([whole, pruned, healed], abs=1e-5)
    assert [row["order"] for row in result.rows] == ["dense", "ranked", "healed"]
    assert len({round(loss, 5) for loss in (whole, pruned, healed)}) == 3
    assert result.facts["delta"] == pytest.approx(healed - whole, abs=1e-5)
    parameters = sum(p.numel() for p in result.hf.parameters())
    assert result.facts["parameters_after"] == parameters < result.facts["parameters_before"]


def test_saving_writes_what_the_registry_names(tmp_path: Path, gpt2_mini: HookedModel, result: PruneResult) -> None:
    run = result.save(tmp_path / "w")
    assert (run.kind, run.model, run.data) == ("prune", gpt2_mini.ref, result.evaluation.ref)
    assert set(run.tables) == {schema.name for schema in TABLES["prune"]}
    workspace = Workspace(tmp_path / "w")
    assert workspace.read_table(run, "drop_curve").column("dropped").to_pylist()[1:] == [list(result.names)] * 2
    assert run.summary["dropped"] == list(result.names)
    assert run.config["n"] == 1
    assert result.calibration is not None
    assert run.config["calibration"] == result.calibration.name
    assert run.config["calibration_tokens"] == 8 * 32
    assert list(result.plot().data[0].x) == ["whole", "pruned", "healed"]


def test_a_drop_by_name_needs_no_calibration(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    by_parts = prune(gpt2_mini, text, PruneConfig(drop=("attn:2", "head:0.1"), format="stock"))
    by_drop = prune(gpt2_mini, text, PruneConfig(drop=Drop(attn=(2,), heads=((0, 1),)), format="stock"))
    assert by_parts.calibration is None
    assert by_parts.evaluation is text
    assert by_parts.rows == by_drop.rows
    assert by_parts.summary() == by_drop.summary()
    assert by_parts._recorded_config()["drop"] == by_drop._recorded_config()["drop"]
    assert by_drop.names == ("attn.2", "head.0.1")


def test_a_budget_is_that_of_select(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    chosen_on, rest = text.split(1 / 2, 0)
    found = prune(gpt2_mini, rest, PruneConfig(target="attn", order="last", save_kv=0.5), chosen_on)
    order = [("attn", layer) for layer in (3, 2, 1, 0)]
    assert found.drop == Drop.of(select(gpt2_mini, order, Budget(kv_bytes=0.5), rest).units)
    assert found.drop == Drop(attn=(2, 3))


BAD = {
    "nothing": ({}, "nothing is given"),
    "both": ({"drop": ("attn:1",), "target": "mlp", "n": 1}, "both drop and target"),
    "no budget": ({"target": "mlp"}, "exactly one of n"),
    "two budgets": ({"target": "mlp", "n": 1, "save_kv": 0.5}, "exactly one of n"),
    "budget of a named drop": ({"drop": ("attn:1",), "n": 1}, "n is a budget and needs a target"),
    "target": ({"target": "layer", "n": 1}, "target 'layer' is unknown"),
    "order": ({"target": "mlp", "n": 1, "order": "first"}, "order 'first' is unknown"),
    "runs of heads": ({"target": "head", "n": 1, "order": "angular"}, "take block"),
    "format": ({"drop": ("attn:1",), "format": "gguf"}, "format 'gguf' is unknown"),
    "objective": ({"drop": ("attn:1",), "heal_steps": 1, "heal_objective": "mse"}, "objective 'mse' is unknown"),
    "limit": ({"drop": ("attn:1",), "lm_eval": ("attlas_ioi",), "lm_eval_limit": 0}, "limit 0 must be 1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_config_that_cannot_be_is_refused(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**settings)  # type: ignore[arg-type]


def test_more_than_there_are(gpt2_mini: HookedModel, text: TokenDataset) -> None:
    with pytest.raises(ConfigError, match="cannot drop 9 of 4"):
        prune(gpt2_mini, text, PruneConfig(target="attn", n=9))

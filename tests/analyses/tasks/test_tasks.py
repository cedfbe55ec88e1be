"""Tasks: prompts of equal length, single-token answers that are where the roles say, metrics against literal arithmetic."""

from __future__ import annotations

import pytest
import torch

from attlas.analyses.tasks.catalog import make_task, require_ability, score_task, task_names
from attlas.analyses.tasks.metrics import CrossEntropy, KLDivergence, LogitDifference, ProbabilityDifference
from attlas.analyses.tasks.task import TaskConfig
from attlas.errors import ConfigError, TaskError
from attlas.interp import HookedModel


@pytest.mark.parametrize("name", task_names())
def test_every_task_suits_a_small_tokenizer(name: str, gpt2_mini: HookedModel) -> None:
    task = make_task(gpt2_mini, TaskConfig(task=name, n_prompts=4, seed=3))
    assert task.tokens.shape == task.corrupted.shape
    assert len(task) == 4
    assert (task.tokens != task.corrupted).any(1).all()
    assert (task.tokens[:, 0] == gpt2_mini.tokenizer.bos_token_id).all()
    for row in range(len(task)):
        right, wrong = set(task.right[row].tolist()) - {-1}, set(task.wrong[row].tolist()) - {-1}
        assert right
        assert wrong
        assert not right & wrong
    assert all(((where >= 0) & (where < task.tokens.shape[1])).all() for where in task.roles.values())
    again = make_task(gpt2_mini, TaskConfig(task=name, n_prompts=4, seed=3))
    assert torch.equal(task.tokens, again.tokens)


@pytest.mark.parametrize("variant", ["abba", "baba"])
@pytest.mark.parametrize("corruption", ["abc", "s2", "swap"])
def test_ioi_roles(variant: str, corruption: str, gpt2_mini: HookedModel) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="ioi", n_prompts=6, variant=variant, corruption=corruption))
    row = torch.arange(6)
    s, io = task.wrong[:, 0], task.right[:, 0]
    assert torch.equal(task.tokens[row, task.roles["S1"]], s)
    assert torch.equal(task.tokens[row, task.roles["S2"]], s)
    assert torch.equal(task.tokens[row, task.roles["IO"]], io)
    first_is_io = task.roles["IO"] < task.roles["S1"]
    assert bool((first_is_io if variant == "abba" else ~first_is_io).all())
    changed = (task.tokens != task.corrupted).sum(1)
    assert bool((changed == (3 if corruption == "abc" else 1)).all())
    if corruption == "swap":
        assert torch.equal(task.corrupted[row, task.roles["S2"]], io)


def test_induction_answer_followed_before(gpt2_mini: HookedModel) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=5))
    row = torch.arange(5)
    assert torch.equal(task.tokens[row, task.roles["previous"]], task.tokens[:, -1])
    assert torch.equal(task.tokens[row, task.roles["source"]], task.right[:, 0])
    assert not (task.corrupted == task.right).any()


def test_a_year_is_right_only_when_later(gpt2_mini: HookedModel) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="greater-than", n_prompts=3))
    for row in range(3):
        text = "".join(gpt2_mini.to_str_tokens(task.tokens[row]))
        start = int(text.split(" to the year")[0][-2:])
        right = [gpt2_mini.to_str_tokens([i])[0] for i in task.right[row].tolist() if i >= 0]
        wrong = [gpt2_mini.to_str_tokens([i])[0] for i in task.wrong[row].tolist() if i >= 0]
        assert all(int(r) >= start // 10 ** (2 - len(r)) for r in right)
        assert all(int(w) <= start // 10 ** (2 - len(w)) for w in wrong)


def test_a_model_that_cannot_is_refused_with_its_accuracy(gpt2_mini: HookedModel) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="docstring", n_prompts=16))
    score = score_task(gpt2_mini, task)
    assert score.accuracy < 0.7
    with pytest.raises(TaskError, match=f"right on {score.accuracy:.0%} of 16 prompts"):
        require_ability(gpt2_mini, task, 0.7)
    good = make_task(gpt2_mini, TaskConfig(task="induction-natural", n_prompts=16))
    assert require_ability(gpt2_mini, good, 0.7).accuracy >= 0.7


def test_metrics_equal_literal_sums() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    right, wrong = torch.tensor([[1, 2], [3, -1]]), torch.tensor([[4], [0]])
    positions = torch.tensor([4, 2])
    found = LogitDifference(right, wrong, positions)(logits)
    expected = [(logits[0, 4, 1] + logits[0, 4, 2]) / 2 - logits[0, 4, 4], logits[1, 2, 3] - logits[1, 2, 0]]
    torch.testing.assert_close(found, torch.stack(expected))
    p = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    expected = [p[0, 4, 1] + p[0, 4, 2] - p[0, 4, 4], p[1, 2, 3] - p[1, 2, 0]]
    torch.testing.assert_close(ProbabilityDifference(right, wrong, positions)(logits), torch.stack(expected))
    other = torch.randn_like(logits)
    q = torch.exp(other) / torch.exp(other).sum(-1, keepdim=True)
    kl = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(KLDivergence(logits)(other), kl.mean(1))
    torch.testing.assert_close(KLDivergence(logits, positions)(other), torch.stack([kl[0, 4], kl[1, 2]]))
    tokens = torch.randint(7, (2, 5))
    ce = [-sum(p[b, t, tokens[b, t + 1]].log() for t in range(4)) / 4 for b in range(2)]
    torch.testing.assert_close(CrossEntropy(tokens)(logits), torch.stack(ce))


def test_unknown_tasks_and_variants_are_named() -> None:
    with pytest.raises(ConfigError, match="'abab'"):
        TaskConfig(variant="abab")
    with pytest.raises(ConfigError, match="'io'"):
        make_task(None, TaskConfig(task="io"))  # type: ignore[arg-type]


@pytest.mark.downloads
def test_smollm2_does_ioi(smollm2: HookedModel) -> None:
    task = make_task(smollm2, TaskConfig(task="ioi", n_prompts=8))
    assert not task.notes
    assert require_ability(smollm2, task, 0.8).metric > 1

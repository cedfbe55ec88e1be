"""Tiles on threads: the same bits as one thread, for statistics and encode."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

from attlas.kernels import AttentionRule, attention_stats, topk_encode
from attlas.kernels.cpu import crew


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(crew, "SMALL", 1)
    usual = torch.get_num_threads()
    yield
    torch.set_num_threads(usual)


@pytest.mark.parametrize("column", [False, True])
def test_statistics_do_not_depend_on_threads(column: bool, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.import_module("attlas.kernels.attention_stats"), "TILE_ELEMENTS", 1 << 10
    )  # many blocks
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 4, 40, 8, generator=g), torch.randn(3, 2, 40, 8, generator=g)
    ids = torch.randint(0, 5, (3, 40), generator=g)
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(
            attention_stats(q, k, AttentionRule(causal=True), token_ids=ids, window=(4, 9), top_k=3, column=column)
        )
    for other in found[1:]:
        for name, value in vars(found[0]).items():
            theirs = getattr(other, name)
            if isinstance(value, dict):
                assert all(torch.equal(value[key], theirs[key]) for key in value), name
            elif value is not None:
                assert torch.equal(value, theirs), name
    assert (found[0].column_mass is not None) == column


def test_encode_does_not_depend_on_threads_and_keeps_gradients(threads: None) -> None:
    g = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(300, 16, generator=g), torch.randn(16, 4096, generator=g), torch.zeros(4096)
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        weight = W.clone().requires_grad_()
        values, indices = topk_encode(x, weight, b, 5)
        values.sum().backward()
        found.append((values, indices, weight.grad))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert torch.equal(found[0][1], (x @ W).topk(5).indices)


def test_a_crew_takes_no_thread_from_torch() -> None:
    """Threads made later still get torch's number, and those of the crew one each, without autograd."""
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        team = crew.Crew(2)
        assert torch.get_num_threads() == 3
        seen: list[tuple[int, bool]] = []
        team.share(range(6), lambda _: seen.append((torch.get_num_threads(), torch.is_grad_enabled())))
        assert seen == [(1, False)] * 6
        assert torch.is_grad_enabled()
        assert team.lead(lambda: crew.crew() is team)
    finally:
        torch.set_num_threads(usual)

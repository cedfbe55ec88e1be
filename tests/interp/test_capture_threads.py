"""Capture of z over several threads: the same numbers, nothing left behind, and only where it is safe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from attlas.errors import NonFiniteError
from attlas.interp import HookedModel

Z = "blocks.*.attn.hook_z"


@pytest.fixture
def two_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def tokens(model: HookedModel) -> torch.Tensor:
    return torch.randint(0, model.cfg.d_vocab, (6, 128), generator=torch.Generator().manual_seed(0))


def test_parts_equal_the_whole(gpt2_mini: HookedModel, two_threads: None) -> None:
    x = tokens(gpt2_mini)
    assert len(gpt2_mini._chunks(x, ("blocks.0.attn.hook_z",), {})) == 3
    _, want = gpt2_mini.run_with_cache(x, Z)
    found = gpt2_mini.capture(x, Z)
    assert list(found) == list(want)
    for name, z in found.items():
        assert not z.requires_grad
        torch.testing.assert_close(z, want[name], atol=1e-5, rtol=1e-5)
    assert not gpt2_mini._engine.registrations
    assert torch.get_num_threads() == 2


def test_an_error_in_one_part_is_raised(gpt2_mini: HookedModel, two_threads: None) -> None:
    weight = gpt2_mini.structure.embed.weight
    x = tokens(gpt2_mini)
    x[4, 3] = 7
    usual = weight[7].detach().clone()
    try:
        with torch.no_grad():
            weight[7] = float("nan")
        with pytest.raises(NonFiniteError):
            gpt2_mini.capture(x, Z)
    finally:
        with torch.no_grad():
            weight[7] = usual
    assert not gpt2_mini._engine.registrations
    assert torch.isfinite(gpt2_mini.capture(x, Z)["blocks.0.attn.hook_z"]).all()


def test_whole_where_parts_would_be_unsafe(gpt2_mini: HookedModel, two_threads: None) -> None:
    x, z = tokens(gpt2_mini), ("blocks.0.attn.hook_z",)
    with gpt2_mini.hooks({"blocks.0.attn.hook_z": lambda t, name: None}):
        assert len(gpt2_mini._chunks(x, z, {})) == 1
    assert len(gpt2_mini._chunks(x, ("blocks.0.attn.hook_q",), {})) == 1
    assert len(gpt2_mini._chunks(x, z, {"attention_mask": torch.ones_like(x)})) == 1
    assert len(gpt2_mini._chunks(x[:2, :100], z, {})) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert len(gpt2_mini._chunks(x, z, {})) == 1
    torch.set_num_threads(1)
    assert len(gpt2_mini._chunks(x, z, {})) == 1

"""Tiles of attention weights beside a float64 softmax of the whole map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.errors import KernelError
from attlas.kernels import AttentionRule, attention_tiles
from attlas.kernels.attention_tiles import Scratch, attention_tile, tile_blocks


def _map(q: Tensor, k: Tensor, rule: AttentionRule, mask: Tensor | None) -> Tensor:
    """Weights [B, H, T, T], float64; rows without a key are 0."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1).double()
    at = torch.arange(q.shape[2])
    allowed = rule.allowed(at, at).expand(q.shape[0], 1, -1, -1)
    allowed = allowed if mask is None else allowed & mask
    logits = q.double() @ keys.mT * rule.scaled(q.shape[-1])
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_tiles_are_the_map(data: st.DataObject) -> None:
    batch, heads, tokens = data.draw(st.tuples(st.integers(1, 3), st.sampled_from((1, 2, 6)), st.integers(1, 23)))
    kv = data.draw(st.sampled_from([n for n in (1, 2, 3, 6) if heads % n == 0]))
    rule = AttentionRule(
        data.draw(st.booleans()),
        data.draw(st.none() | st.integers(1, 9)),
        softcap=data.draw(st.sampled_from((None, 2.0))),
    )
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q, k = (3 * torch.randn(batch, n, tokens, 4, generator=draw) for n in (heads, kv))
    mask, n_strongest = None, data.draw(st.integers(1, 6))
    if data.draw(st.booleans()):
        real = torch.rand(batch, tokens, generator=draw) < 0.7
        mask = real[:, None, None] & real[:, None, :, None]
    whole = _map(q, k, rule, mask)
    seen = torch.zeros(batch, tokens)
    room = attention_tiles.TILE_ELEMENTS
    attention_tiles.TILE_ELEMENTS = data.draw(st.sampled_from((7, 200, room)))
    try:
        blocks = list(tile_blocks(batch, heads, tokens, causal=rule.causal))
    finally:
        attention_tiles.TILE_ELEMENTS = room
    scratch = data.draw(st.sampled_from((None, Scratch())))  # the room of one tile is that of the next
    for block in blocks:
        tile = attention_tile(q, k, rule, block, mask, scratch)
        part = whole[block.rows, :, block.queries]
        seen[block.rows, block.queries] += 1
        torch.testing.assert_close(
            (tile.weights / tile.z[..., None]).double(), part[..., block.keys], atol=2e-6, rtol=1e-5
        )
        entropy = -torch.special.xlogy(part, part).sum(-1)
        torch.testing.assert_close(tile.entropy.double(), entropy, atol=5e-6, rtol=1e-5)
        off = part[..., 1:].amax(-1) if tokens > 1 else torch.zeros_like(part[..., 0])
        torch.testing.assert_close((tile.off_sink / tile.z).double(), off, atol=2e-6, rtol=1e-5)
        here = part[..., block.keys]
        codes = torch.randint(4, (1, *here.shape[-2:]), generator=draw, dtype=torch.uint8)
        expected = torch.stack([(here * (codes == code)[:, None]).sum(-1) for code in range(4)], -1)
        torch.testing.assert_close(tile.sums_by(codes, 4).double(), expected, atol=5e-6, rtol=1e-5)
        position = torch.arange(tokens).double()
        offset = position[block.queries][:, None] - position[block.keys]
        for found, power in zip(tile.distances(), (1, 2), strict=True):
            torch.testing.assert_close(found.double(), (here * offset**power).sum(-1), atol=2e-4, rtol=1e-5)
        values, keys = tile.strongest(n_strongest)
        expected = here.sort(-1, descending=True).values[..., :n_strongest]
        torch.testing.assert_close(values.double(), expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(here.gather(-1, keys - block.keys.start), expected, atol=2e-6, rtol=1e-5)
        assert bool((keys.sort(-1).values.diff(dim=-1) > 0).all()), "a key is told twice"
        for steps in (0, 1, 5):
            at = torch.arange(block.queries.start, block.queries.stop)
            expected = torch.where(
                at >= steps,
                part.gather(-1, (at - steps).clamp(min=0).expand(*part.shape[:2], -1)[..., None])[..., 0],
                0,
            )
            torch.testing.assert_close(tile.behind(steps).double(), expected, atol=2e-6, rtol=1e-5)
    assert bool((seen == 1).all()), "every query lies in one block"


def test_tiles_stay_within_their_room() -> None:
    for tokens in (64, 1000, 4096):
        for block in tile_blocks(4, 12, tokens, causal=True):
            rows, queries = block.rows.stop - block.rows.start, block.queries.stop - block.queries.start
            assert rows * 12 * queries * block.keys.stop <= attention_tiles.TILE_ELEMENTS or queries == 1


def test_shapes_that_do_not_fit_are_refused() -> None:
    block = next(iter(tile_blocks(1, 3, 4, causal=True)))
    with pytest.raises(KernelError, match="3 heads do not share 2 kv heads"):
        attention_tile(torch.zeros(1, 3, 4, 2), torch.zeros(1, 2, 4, 2), AttentionRule(True), block)
    with pytest.raises(KernelError, match="4 queries and 5 keys"):
        attention_tile(torch.zeros(1, 3, 4, 2), torch.zeros(1, 3, 5, 2), AttentionRule(True), block)

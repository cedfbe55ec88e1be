"""The mixing buffer: activations of many sequences, shuffled together, so that a batch is not one document.

It holds `capacity` tokens of every hook. When less than half is left it captures more, shuffles, and goes on. Its
state, generator included, can be saved and restored, after which it serves the very same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from attlas.errors import ConfigError
from attlas.saes.activations import Rows
from attlas.saes.training.clock import Clock

Source = Callable[[int], Rows]
"""Chunk number (0, 1, 2 …, without end) → activations of that chunk; the same number gives the same rows."""


class MixingBuffer:
    """Serve shuffled batches from an endless numbered source.

    Args:
        source: see `Source`.
        capacity: tokens held; memory is capacity × Σ d_in × bytes of dtype.
        seed: of the shuffling.
        dtype: of the rows held, such as torch.bfloat16; batches are float32.
        device: where rows are held and batches come from; None leaves them where the source has them.
        clock: the one that the source charges the model's time to.
    """

    def __init__(
        self,
        source: Source,
        capacity: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | None = None,
        clock: Clock | None = None,
    ) -> None:
        if capacity < 2:
            raise ConfigError(f"a buffer of {capacity} tokens cannot mix anything; give buffer_tokens ≥ 2")
        self.source = source
        self.capacity = capacity
        self.dtype, self.device = dtype, device
        self.clock = clock or Clock()
        self.generator = torch.Generator().manual_seed(seed)
        self.next_chunk = 0
        self.rows: Rows = {}

    @property
    def size(self) -> int:
        """Tokens in the buffer now."""
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def fill(self) -> None:
        """Capture until full, then shuffle every hook's rows by one permutation."""
        parts: dict[str, list[Tensor]] = {hook: [rows] for hook, rows in self.rows.items()}
        held = self.size
        while held < self.capacity:
            chunk = self.source(self.next_chunk)
            self.next_chunk += 1
            for hook, rows in chunk.items():
                parts.setdefault(hook, []).append(rows.to(self.device or rows.device, self.dtype))
            held += len(next(iter(chunk.values())))
        order = torch.randperm(held, generator=self.generator)
        self.rows = {hook: torch.cat(pieces)[order.to(pieces[0].device)] for hook, pieces in parts.items()}

    def peek(self, n: int) -> Rows:
        """The next n tokens (or fewer) without using them up, float32; for initial weights and scales."""
        if self.size < min(n, self.capacity // 2):
            self.fill()
        return {hook: rows[:n].float() for hook, rows in self.rows.items()}

    def next_batch(self, n: int) -> Rows:
        """n tokens of every hook, float32 [n, D], that are then gone."""
        if n > self.capacity // 2:
            raise ConfigError(f"batch_size={n} must be at most half of buffer_tokens={self.capacity}")
        if self.size - n < self.capacity // 2:
            self.fill()
        batch = {hook: rows[:n].float() for hook, rows in self.rows.items()}
        self.rows = {hook: rows[n:] for hook, rows in self.rows.items()}
        return batch

    def close(self) -> None:
        """End what the source does ahead, if anything."""
        close = getattr(self.source, "close", None)
        if close is not None:
            close()

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a MixingBuffer has no end; call next_batch(n)")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values) from which `restore` goes on exactly."""
        tensors = {f"buffer/{hook}": rows.contiguous() for hook, rows in self.rows.items()}
        tensors["generator"] = self.generator.get_state()
        return tensors, {"next_chunk": self.next_chunk}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take up a saved state."""
        self.generator.set_state(tensors["generator"].cpu())
        self.next_chunk = int(values["next_chunk"])
        prefix = "buffer/"
        self.rows = {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}

"""TopK, BatchTopK and Matryoshka: a fixed number of slots a row, and sums over the pairs that fire."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attlas.kernels.dispatch import require
from attlas.kernels.gpu.aux import aux_gradients
from attlas.kernels.gpu.choose import top_of_batch, top_of_rows
from attlas.kernels.gpu.gradient import Gradient, PairSums
from attlas.kernels.gpu.ops import ops_for
from attlas.kernels.gpu.step import GPUStep

SLOTS = 4
"""Slots a row of BatchTopK, as a multiple of k, to begin with."""
PATIENT = 3
"""Steps on a GPU that wait for the device to see whether slots suffice."""


class SlotStep(GPUStep):
    """What the three share; a subclass fills self.values and self.index."""

    slots: int
    edges: Tensor | None = None
    """int32 [G], first feature after each prefix (Matryoshka)."""

    def _allocate(self, n_rows: int) -> None:
        F, D = self.encoder.shape
        G, device, wide = self.n_groups, self.encoder.device, self.encoder.dtype
        self.losses = torch.empty(G, n_rows, dtype=wide, device=device)
        self.grads = torch.empty(n_rows * G, D, dtype=self.narrow, device=device)
        self.offsets = torch.empty(F + 1, dtype=torch.int32, device=device)
        self._slots_changed()

    def _slots_changed(self) -> None:
        N, device = self.n_rows, self.encoder.device
        self.index = torch.empty(N, self.slots, dtype=torch.int32, device=device)
        self.keys = torch.empty_like(self.index)
        self.values = torch.empty(N, self.slots, dtype=self.encoder.dtype, device=device)
        self.d_pre = torch.empty_like(self.values)

    @property
    def n_groups(self) -> int:
        return 1 if self.edges is None else self.edges.numel()

    def _choose(self) -> bool:
        """Fill self.index and perhaps self.values. Returns whether values are there."""
        values, index = top_of_rows(
            self.centred, self.centred_narrow, self.matrices["encoder"].shadow, self.b_enc, self.slots
        )
        self.index = index
        if values is not None:
            self.values = values
        return values is not None

    def _gradients(self) -> tuple[Gradient, Gradient, Tensor, Tensor, Tensor | None]:
        ops, N, G = ops_for(self.centred), self.n_rows, self.n_groups
        encoder, W_dec = self.matrices["encoder"], self.matrices["W_dec"]
        evaluate = None if self._choose() else (encoder.master, self.b_enc)
        ops.decode_dot(
            self.values, self.index, self.centred, W_dec.shadow, self.edges,
            self.grads, self.d_pre, self.keys, self.losses, evaluate,
        )  # fmt: skip
        keys, order = torch.sort(self.keys.view(-1), stable=True)
        d_b_enc = self.vectors.of("b_enc", self.vectors.grad)
        ops.segments(keys, order, self.d_pre, self.offsets, d_b_enc, self.fired)
        pairs = PairSums(order, self.offsets, self.d_pre, self.centred_narrow, self.slots)
        for_encoder = Gradient(pairs)
        for_decoder = Gradient(replace(pairs, weights=self.values, source=self.grads, edges=self.edges))
        aux = None
        if self.aux_columns:
            last = self.grads.view(N, G, -1)[:, -1]
            aux, at, slot, d_enc, d_dec, d_b = aux_gradients(
                self.centred, self.centred_narrow, last, -N * G / 2, encoder, W_dec, self.b_enc,
                self.dead, self.aux_columns, self.options.k_aux, self.aux_full, self.controls,
            )  # fmt: skip
            for_encoder = replace(for_encoder, extra=(slot, d_enc))
            for_decoder = replace(for_decoder, extra=(slot, d_dec))
            d_b_enc.index_add_(0, at, d_b)
        return for_encoder, for_decoder, self.grads.view(N, G, -1)[:, 0], d_b_enc, aux

    def _losses(self) -> Tensor:
        return self.losses


class TopKOnGPU(SlotStep):
    """The k largest of each row."""

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.options.k


class BatchTopKOnGPU(SlotStep):
    """The N·k largest of the batch, of at most `slots` a row; with several widths, ascending to F, Matryoshka's prefixes.

    A row that would take all of its slots has too few: on a CPU, and in a GPU's first steps, there are twice as many at once,
    and the batch is chosen again. Later such rows are cut, and counted on the device; `widen`, at a step that waits for the
    device anyway, reads the count.
    """

    def use(self, widths: tuple[int, ...]) -> None:
        """Call before the first step."""
        F = self.encoder.shape[0]
        require(not widths or widths[-1] == F, f"the last width {widths[-1:]} is not the {F} features")
        self.slots = min(F, SLOTS * self.options.k)
        self.crowded = torch.zeros((), dtype=torch.int64, device=self.encoder.device)
        self.least = self.encoder.new_zeros(())
        if len(widths) > 1:
            self.edges = torch.tensor(widths, dtype=torch.int32, device=self.encoder.device)
            self.nested = True  # type: ignore[misc]

    def _choose(self) -> bool:
        while True:
            if not super()._choose():
                encoder = self.matrices["encoder"].master
                self.values = ops_for(encoder).evaluate(self.centred, encoder, self.b_enc, self.index)
            kept, least = top_of_batch(self.values, self.n_rows * self.options.k)
            if self.slots < self.encoder.shape[0]:
                self.crowded += (kept > 0).all(1).sum()
                if self._may_wait() and self.widen():
                    continue
            self.values = kept
            self.least.copy_(least)
            return True

    def _may_wait(self) -> bool:
        return self.encoder.device.type == "cpu" or self.n_steps < PATIENT

    def _key(self) -> tuple[int, ...]:
        return (*super()._key(), self.slots)

    def widen(self) -> int:
        """How many rows filled their slots since the last call; then there are twice as many. Waits for the device."""
        n = int(self.crowded)
        if n:
            self.slots = min(self.encoder.shape[0], 2 * self.slots)
            self.crowded.zero_()
            self._slots_changed()
        return n

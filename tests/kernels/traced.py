"""Counts what a training step asks of a GPU: launches, waits of the host, bytes. On meta tensors, so at true sizes and at once.

An operation of torch counts as one launch, though a sort or a sum may take more; views and allocations do not count.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "_unsafe_view", "lift_fresh"}
WAITS = {"_local_scalar_dense", "nonzero", "bincount", "is_nonzero", "masked_select"}


class Traced(TorchDispatchMode):
    """Attributes: operations, by name; waits; live and peak bytes of what was made since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.waits = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in WAITS:
            self.waits += 1
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given | self._known:
                self._keep(tensor)
        if not func.is_view and name not in FREE:
            self.operations.append(name)
        return result

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


def steps_of(
    arch: str, precision: str, N: int, D: int, F: int, k: int, *, aux: bool = False, clip: float | None = None
):
    """The step of an architecture on meta tensors, warmed up, and a call that takes one more."""
    from attlas.saes import SAEConfig
    from attlas.saes.architectures import create_sae
    from attlas.saes.training.fused import gpu_step

    sae = create_sae(SAEConfig(d_in=D, d_sae=F, arch=arch, k=k)).to("meta")
    step = gpu_step(sae, precision=precision, clip=clip)  # type: ignore[arg-type]
    step.n_steps = 10
    x, dead = torch.empty(N, D, device="meta"), torch.empty(F, dtype=torch.bool, device="meta")
    return step, lambda: step.step(x, dead if aux else None, lr=1e-3, penalty=1.0, aux_columns=2000 if aux else 0)

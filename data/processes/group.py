"""A group of processes on torch.distributed, started by torchrun; `ALONE` is the group of one, whose exchanges do nothing.

gloo carries tensors of the CPU and plain values, nccl those of GPUs. All processes run the same code in the same order: every
exchange is a call that each of them makes.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attlas.data.processes.launch import launched
from attlas.data.processes.watch import end_with_others
from attlas.errors import ConfigError, ProcessError

T = TypeVar("T")
_met = 0  # how often `join` was called: what is told is counted anew
PATIENCE = datetime.timedelta(minutes=30)  # for a process that is alive: the first waits while others capture


@dataclass(frozen=True)
class Group:
    """This process among the others.

    Attributes:
        rank: its number, 0 … size − 1.
        size: how many there are.

    Example:
        >>> from attlas.data.processes.group import ALONE
        >>> ALONE.first, ALONE.sum(torch.ones(2)), ALONE.all_of("value")
        (True, tensor([1., 1.]), ['value'])
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, in place, summed over processes; the same bits on all."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def least(self, tensor: Tensor) -> Tensor:
        """The tensor, in place, the least over processes."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def all_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank; all have one shape and type."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._do(lambda: dist.all_gather(found, tensor.contiguous()))
        return found

    def all_rows(self, rows: Tensor, counts: list[int], to: int | None = None) -> Tensor | None:
        """Every process's rows one after the other, on all processes or on one.

        Args:
            rows: [n, …], n of this process.
            counts: n of each process (see `all_of`).
            to: the process that gets them, None for all; the others then get None.
        """
        if self.size == 1:
            return rows
        most = max(counts)
        padded = rows.contiguous()
        if len(rows) < most:
            padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
        here = to is None or to == self.rank
        found = [torch.empty_like(padded) for _ in range(self.size)] if here else None
        if to is None:
            self._do(lambda: dist.all_gather(found, padded))
        else:
            self._do(lambda: dist.gather(padded, found, dst=to))
        return torch.cat([part[:n] for part, n in zip(found, counts, strict=True)]) if found is not None else None

    def to_first(self, tensor: Tensor) -> list[Tensor] | None:
        """Every process's tensor by rank, of one shape, on process 0; None on the others."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        kept = found if self.first else None
        self._do(lambda: dist.gather(tensor.contiguous(), kept, dst=0))
        return kept

    def all_of(self, value: T) -> list[T]:
        """Every process's plain value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._do(lambda: dist.all_gather_object(found, value))
        return found

    def values_to_first(self, value: T) -> list[T]:
        """Every process's plain value, by rank, on process 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.first else None
        self._do(lambda: dist.gather_object(value, found, dst=0))
        return found or []

    def of_first(self, value: T) -> T:
        """Process 0's plain value."""
        if self.size == 1:
            return value
        found: list[Any] = [value]
        self._do(lambda: dist.broadcast_object_list(found, src=0))
        return found[0]

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        if self.size > 1:
            self._do(lambda: dist.all_reduce(tensor, op=how))
        return tensor

    def _do(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            why = re.sub(r"^\[/\S+\] ", "", str(error).strip().splitlines()[0])  # the place in gloo's own code
            raise ProcessError(
                f"process {self.rank} of {self.size} lost another one ({why:.100}); all end here, see whether that one said why"
            ) from error


ALONE = Group()


def join(device: str = "auto") -> Group:
    """Meet the other processes of torchrun; the current CUDA device becomes the GPU of this process's place.

    Args:
        device: as asked for; "auto" and "cuda" mean that GPU from here on.

    Raises:
        ConfigError: fewer GPUs than processes, or some processes on GPUs and some not, or two on one GPU.
        ProcessError: another one did not come.
    """
    global _met
    rank, size = launched()
    if size == 1:
        return ALONE
    _met += 1
    group = Group(rank, size)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        group._do(lambda: dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE))
        end_with_others()
    kinds = group.all_of("cuda" if on_gpu else "cpu")
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"processes 0 to {size - 1} lie on {', '.join(kinds)}; give all the same --device, cpu or cuda"
        )
    if on_gpu:
        place = (
            int(os.environ.get("LOCAL_RANK", rank)) if device in ("auto", "cuda") else torch.device(device).index or 0
        )
        if place >= torch.cuda.device_count():
            raise ConfigError(
                f"process {rank} has no GPU: {torch.cuda.device_count()} here; lower --nproc-per-node, or give --device cpu"
            )
        torch.cuda.set_device(place)
        places = group.all_of((os.uname().nodename, place))
        if len(set(places)) < size:
            raise ConfigError(f"two processes share cuda:{place}; leave --device out, or lower --nproc-per-node")
    return group


def speaks(rank: int) -> bool:
    """Whether this process tells of an error: the first to have one, so that it is told once."""
    if not dist.is_initialized():
        return rank == 0
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add(f"attlas/told/{_met}", 1)) == 1
    except RuntimeError:  # the store's keeper is gone
        return True

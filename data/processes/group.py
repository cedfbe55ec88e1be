"""A group of processes on torch.distributed, started by torchrun; `ALONE` is the group of one, whose exchanges do nothing.

gloo carries tensors of the CPU and plain values, nccl those of GPUs. All processes run the same code in the same order: every
exchange is a call that each of them makes.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attlas.data.processes.watch import end_with_others
from attlas.errors import ConfigError, ProcessError

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=30)  # for a process that is alive: the first waits while others capture
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
            raise ProcessError(
                f"process {self.rank} of {self.size} lost another one ({str(error).strip().splitlines()[0]:.120}); all end "
                "here, see the lost one's own message"
            ) from error


ALONE = Group()


def launched() -> tuple[int, int]:
    """(rank, size) that torchrun gave this process; (0, 1) without torchrun.

    Raises:
        ConfigError: its variables are half there.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 0, 1
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing or not size.isdigit() or not os.environ["RANK"].isdigit():
        raise ConfigError(
            f"WORLD_SIZE={size} without a proper {missing[0] if missing else 'RANK'}; start with torchrun --nproc-per-node P"
        )
    return int(os.environ["RANK"]), int(size)


def join(device: str = "auto") -> tuple[Group, str]:
    """Meet the other processes of torchrun.

    Args:
        device: as asked for; "auto" and "cuda" take the GPU of this process's place on its machine.

    Returns:
        The group and this process's device.

    Raises:
        ConfigError: fewer GPUs than processes, or some on GPUs and some not.
        ProcessError: another one did not come.
    """
    rank, size = launched()
    if size == 1:
        return ALONE, device
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = int(os.environ.get("LOCAL_RANK", rank))
    if on_gpu and device in ("auto", "cuda"):
        if place >= torch.cuda.device_count():
            raise ConfigError(
                f"process {rank} has no GPU: {torch.cuda.device_count()} here; lower --nproc-per-node, or give --device cpu"
            )
        device = f"cuda:{place}"
    if on_gpu:
        torch.cuda.set_device(device)
    device = device if on_gpu or device != "auto" else "cpu"
    group = Group(rank, size)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        group._do(lambda: dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE))
        end_with_others()
    kinds = group.all_of(device.split(":")[0])
    if len(set(kinds)) > 1:
        raise ConfigError(f"processes lie on {kinds[0]} and {next(k for k in kinds if k != kinds[0])}; give all one --device")
    if on_gpu and len(set(group.all_of((os.uname().nodename, device)))) < size:
        raise ConfigError(f"two processes share {device}; leave --device out, or lower --nproc-per-node")
    return group, device


def speaks(rank: int) -> bool:
    """Whether this process tells of an error: the first to have one, so that it is told once."""
    if not dist.is_initialized():
        return rank == 0
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add("attlas/told", 1)) == 1
    except RuntimeError:  # the store's keeper is gone
        return True

"""One rank of a training with DistributedDataParallel, σReparam and the tracker: ddp_rank.py STORE RANK WORLD OUT."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import attlas

N_STEPS, PER_RANK = 3, 4


class Mixer(nn.Module):
    """Attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.attn(x, x, x, need_weights=False)[0])


def train(rank: int, world: int) -> dict[str, object]:
    """A few steps on this rank's share of the same batches; weights, buffers and the tracker's rows at the end."""
    torch.manual_seed(0)
    model: nn.Module = Mixer().train()
    attlas.sigma_reparam(model)
    called = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = torch.randn(N_STEPS, 2 * PER_RANK, 5, 8, generator=torch.Generator().manual_seed(1))
    share = slice(rank * PER_RANK, (rank + 1) * PER_RANK) if world > 1 else slice(None)
    with attlas.EntropyTracker(called, every=2, n_sequences=2 * PER_RANK) as tracker:
        for batch in batches[:, share]:
            called(batch).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.step()
    return {"state": model.state_dict(), "rows": tracker.table().to_pylist()}


if __name__ == "__main__":
    store, rank, world, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.save(train(rank, world), out)
    torch.distributed.destroy_process_group()

"""The largest activations of a batch whose rows, or features, lie on several processes; as one process would choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.data.processes.group import Group
from attlas.kernels import topk_rows


@dataclass(frozen=True)
class Peers:
    """What BatchTopK asks the other processes.

    Attributes:
        group: the processes.
        first_row, first_feature: of the whole batch [B, F], where this process's part begins.
        rows, features: B and F.
    """

    group: Group
    first_row: int
    first_feature: int
    rows: int
    features: int

    def choose(self, f_BF: Tensor, k: int) -> Tensor:
        """This process's part with everything but the rows·k largest of the whole batch set to 0.

        Equal ones at the last place go to the lower row, then feature. Sent are at most rows·k values a process.
        """
        budget = k * self.rows
        flat = f_BF.detach().flatten()
        if budget >= self.rows * self.features:
            return f_BF
        own = flat.topk(min(budget, len(flat)), sorted=False).values  # parts are of one size
        least = torch.cat(self.group.all_tensors(own)).topk(budget, sorted=False).values.min()
        above, level = f_BF > least, f_BF == least
        counts = torch.stack([above.sum(), level.sum()])
        n_above, n_level = (int(n) for n in self.group.sum(counts))
        if n_above + n_level == budget or bool(least == 0):
            return torch.where(above | level, f_BF, 0)
        places = self._places(level)
        kept = torch.cat([torch.tensor(found) for found in self.group.all_of(places.tolist())]).sort().values
        last = kept[budget - n_above - 1].to(places.device)
        wanted = level.clone()
        wanted[level] = places <= last
        return torch.where(above | wanted, f_BF, 0)

    def least(self, smallest: Tensor) -> Tensor:
        """The least over processes."""
        return self.group.least(smallest)

    def _places(self, marked: Tensor) -> Tensor:
        row, feature = marked.nonzero().T
        return (row + self.first_row) * self.features + feature + self.first_feature


def keep_of_rows(group: Group, values_BK: Tensor, k: int) -> Tensor:
    """Which of this process's candidates are among the k largest of their row over all processes, bool [B, K].

    Args:
        values_BK: the largest of this process's features, the largest first, equal ones by their index; K alike on all.
        k: to keep of K · processes.
    """
    width = values_BK.shape[1]
    everyone = torch.cat(
        group.all_tensors(values_BK.detach()), dim=1
    )  # by rank, and so by feature where values are equal
    chosen = topk_rows(everyone, min(k, everyone.shape[1]))[1]
    keep = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, chosen, True)
    return keep[:, group.rank * width : (group.rank + 1) * width]

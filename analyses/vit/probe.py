"""Accuracy without a classifier: k-nearest-neighbour and linear probes on a backbone's embeddings.

A probe is fitted on the embeddings of the whole model and asked about those of the pruned one, as a fixed classifier
would be. No image is judged by a probe that saw it: the k-NN leaves the image itself out, the linear probe is one of
five, each fitted without a fifth of the images. k-NN with softened votes is Wu et al. 2018 (arXiv 1805.01978).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.data.splits import stratified_order
from attlas.errors import ImageDataError


@dataclass(frozen=True)
class KnnProbe:
    """Cosine k-NN with votes exp(similarity / temperature).

    Attributes:
        features: [n, d] unit rows, the memory.
        labels: int64 [n].
        k: neighbours that vote.
        temperature: of the votes; 0.07 as in the paper.
    """

    features: Tensor
    labels: Tensor
    k: int = 5
    temperature: float = 0.07

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, k: int = 5) -> KnnProbe:
        """Remember embeddings [n, d] and labels [n]."""
        _need_classes(labels)
        return cls(torch.nn.functional.normalize(features.float(), dim=-1), labels, min(k, len(labels) - 1))

    def predict(self, features: Tensor, rows: Tensor) -> Tensor:
        """Labels [B] of embeddings [B, d]; `rows` [B] are the images' own places in the memory, left out."""
        similarity = torch.nn.functional.normalize(features.float(), dim=-1) @ self.features.T
        similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        best, index = similarity.topk(self.k, dim=-1)
        votes = torch.zeros(len(rows), int(self.labels.max()) + 1, device=best.device)
        votes.scatter_add_(1, self.labels[index], (best / self.temperature).exp())
        return votes.argmax(-1)


@dataclass(frozen=True)
class LinearProbe:
    """Ridge regression on one-hot labels; image i is judged by weights[fold[i]], fitted without it.

    Attributes:
        weights: [fold, d + 1, class], of standardised embeddings with a column of ones.
        mean, std: [d] of the embeddings.
        fold: int64 [n].
    """

    weights: Tensor
    mean: Tensor
    std: Tensor
    fold: Tensor

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, *, n_folds: int = 5, ridge: float = 0.1, seed: int = 0
    ) -> LinearProbe:
        """Fit on embeddings [n, d] and labels [n]; `ridge` times the number of images is the penalty *(ours)*."""
        _need_classes(labels)
        x = features.double()
        mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
        x = torch.cat([(x - mean) / std, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], dim=1)
        order = torch.from_numpy(stratified_order(len(x), labels.cpu().numpy(), seed)).to(x.device)
        fold = torch.empty_like(order)
        fold[order] = torch.arange(len(x), device=x.device) * min(n_folds, len(x)) // len(x)
        targets = torch.nn.functional.one_hot(labels).to(x)
        weights = []
        for held_out in range(int(fold.max()) + 1):
            kept = fold != held_out
            penalty = ridge * int(kept.sum()) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            penalty[-1, -1] = 0  # the intercept is free
            weights.append(torch.linalg.lstsq(x[kept].T @ x[kept] + penalty, x[kept].T @ targets[kept]).solution)
        return cls(torch.stack(weights), mean, std, fold)

    def predict(self, features: Tensor, rows: Tensor) -> Tensor:
        """Labels [B] of embeddings [B, d] of the images `rows` [B]."""
        x = (features.double() - self.mean) / self.std
        scores = torch.einsum("bd,bdc->bc", x, self.weights[self.fold[rows], :-1]) + self.weights[self.fold[rows], -1]
        return scores.argmax(-1)


def _need_classes(labels: Tensor) -> None:
    counts = torch.bincount(labels)
    if int((counts > 1).sum()) < 2:
        raise ImageDataError(
            f"a probe needs two classes of two images or more, and {len(labels)} images have "
            f"{int((counts > 0).sum())} classes; give more images"
        )

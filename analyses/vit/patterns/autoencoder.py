"""A small autoencoder of attention maps, with scikit-learn's fit/transform (after Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from attlas.data.progress import Track, no_track
from attlas.errors import ConfigError


def hellinger(maps: np.ndarray) -> np.ndarray:
    """Maps [n, …] of non-negative weights → unit vectors √(m/Σm) [n, cells] float32.

    Squared distances are then twice the squared Hellinger distance, so that one bright cell does not drown the rest
    *(ours)*. A map without mass becomes a flat one.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float32)
    total = flat.sum(1, keepdims=True)
    flat = np.where(total > 1e-12, flat / np.maximum(total, 1e-12), 1 / flat.shape[1])
    root: np.ndarray = np.sqrt(flat).astype(np.float32)
    return root


class _Skip(nn.Module):
    """x ↦ W·x + b + MLP(x), the MLP with one hidden layer and GELU."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.bend = nn.Sequential(nn.Linear(n_in, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_out))

    def start_from(self, weight: Tensor) -> None:
        """Make it the linear map W [n_out, n_in] alone."""
        last = self.bend[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            for zero in (self.linear.bias, last.weight, last.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.bend(x)
        return y


@dataclass
class PatternAutoencoder:
    """Autoencoder cells → latent → cells on Hellinger vectors, mean squared error; both ways a linear map plus an MLP.

    It starts as PCA of its size, and training bends it from there: so it never does worse on its training maps, and a
    thousand maps are enough *(ours; a plain MLP from random weights needs many more to reach PCA)*.

    Attributes:
        n_latent: size of the latent.
        n_hidden: width of the hidden layers.
        n_epochs, batch_size, learning_rate: Adam, one-cycle; 0 epochs leave it at its start, PCA itself or untrained.
        start: "pca", or "random" weights.
        seed: of starting weights and order; equal seeds give equal latents on a CPU.
        as_given: takes rows [n, cells] as they are, without Hellinger's root.
        losses_: mean loss of each epoch, once fitted.
    """

    n_latent: int = 8
    n_hidden: int = 128
    n_epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    start: str = "pca"
    seed: int = 0
    as_given: bool = False
    losses_: list[float] = field(default_factory=list)

    def fit(self, maps: np.ndarray, track: Track = no_track) -> PatternAutoencoder:
        """Train on maps [n, rows, columns] (or [n, cells])."""
        if len(maps) < 2:
            raise ConfigError(f"an autoencoder needs at least 2 maps, not {len(maps)}")
        x = self._vectors(maps)
        self._mean = x.mean(0)
        x = x - self._mean
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._encoder = _Skip(x.shape[1], self.n_hidden, self.n_latent)
            self._decoder = _Skip(self.n_latent, self.n_hidden, x.shape[1])
        if self.start == "pca":
            directions = torch.linalg.svd(x, full_matrices=False).Vh[: self.n_latent]
            basis = torch.zeros(self.n_latent, x.shape[1])
            basis[: len(directions)] = directions
            self._encoder.start_from(basis)
            self._decoder.start_from(basis.T)
        self.losses_ = []
        if self.n_epochs:
            self._train(x, generator, track)
        return self

    def _train(self, x: Tensor, generator: torch.Generator, track: Track) -> None:
        parameters = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)
        n_steps = self.n_epochs * -(-len(x) // self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=n_steps + 1)
        with torch.enable_grad():
            for _ in track(range(self.n_epochs), "pattern autoencoder", self.n_epochs):
                total = 0.0
                for rows in torch.randperm(len(x), generator=generator).split(self.batch_size):
                    optimizer.zero_grad()
                    loss = (self._decoder(self._encoder(x[rows])) - x[rows]).square().sum(-1).mean()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach()) * len(rows)
                self.losses_.append(total / len(x))

    def _vectors(self, maps: np.ndarray) -> Tensor:
        return torch.from_numpy(maps if self.as_given else hellinger(maps))

    def _fitted(self) -> None:
        if not hasattr(self, "_mean"):
            raise ConfigError("the autoencoder is not fitted; call fit(maps) first")

    def _centred(self, maps: np.ndarray) -> Tensor:
        self._fitted()
        x = self._vectors(maps)
        if x.shape[1] != len(self._mean):
            raise ConfigError(f"maps of {x.shape[1]} cells do not fit an autoencoder of {len(self._mean)}")
        return x - self._mean

    @torch.no_grad()
    def transform(self, maps: np.ndarray) -> np.ndarray:
        """Latents float32 [n, n_latent]."""
        x = self._centred(maps)
        latents: np.ndarray = self._encoder(x).numpy()
        return latents

    def fit_transform(self, maps: np.ndarray, track: Track = no_track) -> np.ndarray:
        """fit, then transform."""
        return self.fit(maps, track).transform(maps)

    @torch.no_grad()
    def inverse_transform(self, latents: np.ndarray) -> np.ndarray:
        """Latents → maps [n, cells] that sum to 1."""
        self._fitted()
        root = (self._decoder(torch.from_numpy(latents)) + self._mean).clamp_min(0).square()
        maps: np.ndarray = (root / root.sum(-1, keepdim=True).clamp_min(1e-12)).numpy()
        return maps

    @torch.no_grad()
    def score(self, maps: np.ndarray) -> float:
        """Explained variance of maps: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean of the maps it was fitted on."""
        x = self._centred(maps)
        error = (self._decoder(self._encoder(x)) - x).square().sum()
        return float(1 - error / x.square().sum().clamp_min(1e-12))

"""What two autoencoders have in common when one of them is a random dictionary *(ours)*.

Two nulls of a dictionary, with as many features: *control*, in every head's slice of each feature (of hooks without heads:
in one slice) a decoder and an encoder row of the feature's norms and of the angle between the two, the pair turned at random;
and *shuffled*, the entries of both rows in one random order. A null feature fires as directions do in
`attlas.analyses.features.directions`: where its encoder row, less an offset, stands above the dictionary's own bar (TopK: the
k-th largest of the token; elsewhere 0), the offset such that it is active on as many tokens of a sample as the feature is.
So what both nulls keep is how many features there are, how often each fires, the competition, and for control the head shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.directions import encoder_directions, offsets, reading
from attlas.analyses.features.null import null_directions
from attlas.saes.base import SAE

_CHUNK = 256  # directions whose activations on the whole sample are held at a time


@dataclass(frozen=True)
class Read:
    """What an autoencoder makes of n tokens.

    Attributes:
        features: [n, F] activations.
        x: [n, D], what its encoder reads.
        bar: [n], the least that is active on the token.
    """

    features: Tensor
    x: Tensor
    bar: Tensor

    @classmethod
    def of(cls, sae: SAE, z: Tensor) -> Read:
        """Read activations z [n, D]."""
        features = sae.encode(z)
        x, bar = reading(sae, z, features.topk(sae.cfg.k if sae.arch == "topk" else 1).values)
        return cls(features, x.to(z.device), bar.to(z.device))


@dataclass(frozen=True)
class NullDictionary:
    """A dictionary that stands in for another.

    Attributes:
        name: "control" or "shuffled".
        W_dec: [F, D] decoder rows.
        directions: [F, D] encoder rows.
        offset: [F] taken from x·w; infinite where the feature is silent on the sample.
    """

    name: str
    W_dec: Tensor
    directions: Tensor
    offset: Tensor

    def encode(self, read: Read) -> Tensor:
        """[n, F] activations."""
        pre = read.x @ self.directions.T - self.offset
        return torch.where(pre > read.bar[:, None], pre, 0.0)


def null_dictionaries(sae: SAE, n_heads: int, sample: Read, seed: int) -> Iterator[NullDictionary]:
    """Both nulls of an autoencoder.

    Args:
        n_heads: slices of the hook's width; 1 for hooks without heads.
        sample: of its activations, from which offsets are.
    """
    rows = sae.W_dec.detach().float().cpu(), encoder_directions(sae)
    n_active = (sample.features > 0).sum(0)
    made = {"control": turned(*rows, n_heads, seed), "shuffled": _shuffled(*rows, seed)}
    for name, both in made.items():
        W_dec, directions = (w.to(sae.W_dec.device) for w in both)
        yield NullDictionary(name, W_dec, directions, _offset(directions, sample, n_active))


def turned(W_dec: Tensor, directions: Tensor, n_heads: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of rows [F, D], each pair of slices turned at random: norms and the angle within a slice stay.

    A random rotation takes the one to any direction, and the other's part across it to any direction across that one.
    """
    d_slice = W_dec.shape[1] // n_heads
    dec, enc = (w.unflatten(-1, (n_heads, d_slice)) for w in (W_dec, directions))
    ones = torch.ones(len(W_dec), n_heads)
    # Not the bare seed: an autoencoder that started from it would find its own first directions here.
    u, v = (null_directions(ones, d_slice, [seed, 0x5EED, i]).unflatten(-1, (n_heads, d_slice)) for i in (0, 2))
    v = torch.nn.functional.normalize(v - (v * u).sum(-1, keepdim=True) * u, dim=-1)
    norm = dec.norm(dim=-1, keepdim=True)
    along = (dec * enc).sum(-1, keepdim=True) / norm.clamp_min(1e-12)
    across = (enc.square().sum(-1, keepdim=True) - along.square()).clamp_min(0).sqrt()
    return (norm * u).flatten(-2), (along * u + across * v).flatten(-2)


def _shuffled(W_dec: Tensor, directions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    draws = np.random.default_rng([seed, 0x5EED, 1]).random(W_dec.shape, dtype=np.float32)
    order = torch.from_numpy(draws).argsort(-1)
    return W_dec.gather(1, order), directions.gather(1, order)


def _offset(directions: Tensor, sample: Read, n_active: Tensor) -> Tensor:
    parts = [
        offsets(w @ sample.x.T - sample.bar, n)
        for w, n in zip(directions.split(_CHUNK), n_active.split(_CHUNK), strict=True)
    ]
    return torch.where(n_active > 0, torch.cat(parts), torch.inf)

"""Initial weights: unit decoder rows, W_enc = W_decᵀ / 2, b_dec = mean of a first sample.

The factor ½ *(ours)*: the chosen features of a token overlap, so with W_enc = W_decᵀ their sum overshoots (measured in
docs/saes.md).

**Active-subspace initialisation** (arXiv 2508.16929): attention outputs are low-rank, and a feature
whose direction lies where activations have no variance is dead from the start. Random directions are therefore projected onto
the principal subspace that holds `variance` of the sample's variance, then brought back to norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.saes.base import SAE

BLOCK = 4096  # rows drawn at a time


def principal_subspace(x_ND: Tensor, variance: float) -> Tensor:
    """Orthonormal rows [R, D] of the fewest principal directions that hold `variance` of the sample's variance."""
    centred = (x_ND - x_ND.mean(0)).double()
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred)
    share = eigenvalues.flip(0).clamp_min(0).cumsum(0)
    share = share / share[-1].clamp_min(1e-30)
    rank = int((share < variance).sum()) + 1
    return vectors.flip(1)[:, :rank].T.to(x_ND.dtype).contiguous()


def draw(rows: int, columns: int, generator: torch.Generator, first: int, n: int) -> Tensor:
    """Rows first … first + n of randn(rows, columns), without holding the others.

    Numbers are drawn by sixteens, so blocks of a multiple of sixteen rows are drawn as the whole would be.
    """
    if n == rows:
        return torch.randn(rows, columns, generator=generator)
    kept = []
    for start in range(0, rows, BLOCK):
        stop = rows if rows - start < 2 * BLOCK else start + BLOCK  # no block of less than sixteen numbers
        block = torch.randn(stop - start, columns, generator=generator)
        low, high = max(first, start), min(first + n, stop)
        if low < high:
            kept.append(block[low - start : high - start].clone())
        if stop == rows:
            break
    return torch.cat(kept)


@torch.no_grad()
def initialise(
    sae: SAE,
    sample_ND: Tensor,
    generator: torch.Generator,
    *,
    active_subspace: bool,
    variance: float = 0.99,
    encoder_scale: float = 0.5,
    of: tuple[int, int] | None = None,
) -> int:
    """Set the weights of `sae` in place.

    Args:
        sae: its W_enc, W_dec and b_dec are overwritten; other parameters keep their start values.
        sample_ND: activations the SAE will see, [N, d_in]; their mean becomes b_dec.
        generator: source of the random directions (CPU).
        active_subspace: project directions as above; otherwise they are uniform on the sphere.
        variance: share of variance the subspace holds.
        encoder_scale: norm of the encoder's columns.
        of: (first feature, features) where `sae` holds a part of a wider one, whose weights there it gets.

    Returns:
        The dimension of the subspace used (d_in without projection).
    """
    sample = sample_ND.float()
    first, d_sae = of or (0, sae.cfg.d_sae)
    directions = draw(d_sae, sae.cfg.d_in, generator, first, sae.cfg.d_sae).to(sample.device)
    rank = sae.cfg.d_in
    if active_subspace and len(sample) > 1:
        basis_RD = principal_subspace(sample, variance)
        rank = len(basis_RD)
        directions = directions @ basis_RD.T @ basis_RD
    directions = directions / directions.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    sae.W_dec.copy_(directions)
    sae.W_enc.copy_(encoder_scale * directions.T)
    sae.b_dec.copy_(sample.mean(0))
    return rank

"""What a sparse autoencoder is compared with: reconstructions that anybody gets for free.

`pca`: the k principal directions of the evaluation data itself, k = the SAE's L0 (generous: it is fitted on what it is
tested on). `random_dictionary`: unit directions drawn at random, the k largest inner products of each token.
`shuffled_weights`: the SAE with the entries of every feature's directions permuted. The last two are
multiplied by the one factor that fits a sample best, so that they do not lose by scale alone *(ours)*.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.errors import ConfigError
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.evaluation.config import CONTROLS


@dataclass(frozen=True)
class Reconstructor:
    """Something that reconstructs activations.

    Attributes:
        name: "sae" or a control's.
        reconstruct: rows [N, D] → (x̂ [N, D], number of active components a row [N]).
        note: what it is, for the table.
    """

    name: str
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]]
    note: str


def sae_reconstructor(sae: SAE, fired_F: Tensor | None = None) -> Reconstructor:
    """The SAE itself; `fired_F` int64 [F] counts the rows each feature was active on."""

    def reconstruct(x_ND: Tensor) -> tuple[Tensor, Tensor]:
        x_hat_ND, active_N, f_F = encode_once(sae, x_ND)
        if fired_F is not None:
            fired_F.add_(f_F)
        return x_hat_ND, active_N

    return Reconstructor("sae", reconstruct, f"{sae.cfg.arch}, {sae.cfg.d_sae} features")


def encode_once(sae: SAE, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ [N, D], active features a row [N], and rows a feature was active on [F], from one encoding."""
    if sae.cfg.arch == "topk":
        values, indices = sae.encode_sparse(x_ND)
        active = values > 0
        x_hat = sae._normalise(x_ND.to(sae.W_enc.dtype))[1](sae.decode_sparse(values, indices))
        fired = torch.bincount(indices[active], minlength=sae.cfg.d_sae)
    else:
        f = sae.encode(x_ND)
        active = f > 0
        x_hat, fired = sae.decode_like(f, x_ND), active.sum(0)
    return x_hat.to(x_ND.dtype), active.sum(-1), fired


def make_control(
    name: str, sae: SAE, mean_D: Tensor, covariance_DD: Tensor, sample_ND: Tensor, k: int, seed: int
) -> Reconstructor:
    """One of `CONTROLS`, with k active components a token.

    Raises:
        ConfigError: the name is unknown.
    """
    if name == "pca":
        return _pca(mean_D, covariance_DD, k)
    if name == "random_dictionary":
        return _scaled(name, random_dictionary(sae, mean_D, k, seed), mean_D, sample_ND, f"{k} of random directions")
    if name == "shuffled_weights":
        return _scaled(name, shuffled(sae, seed), mean_D, sample_ND, "the SAE, entries of each direction permuted")
    raise ConfigError(f"control '{name}' is unknown; use {', '.join(CONTROLS)}")


def _pca(mean_D: Tensor, covariance_DD: Tensor, k: int) -> Reconstructor:
    _, vectors = torch.linalg.eigh(covariance_DD)
    basis_DK = vectors[:, -k:].to(mean_D.dtype)

    def reconstruct(x_ND: Tensor) -> tuple[Tensor, Tensor]:
        x_hat = mean_D + (x_ND - mean_D) @ basis_DK @ basis_DK.T
        return x_hat, torch.full((len(x_ND),), k, device=x_ND.device)

    return Reconstructor("pca", reconstruct, f"{k} principal components of the evaluation data")


@torch.no_grad()
def random_dictionary(sae: SAE, mean_D: Tensor, k: int, seed: int) -> SAE:
    """As many unit directions about the mean, drawn at random; k of them active a token."""
    cfg = SAEConfig(d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, arch="topk", k=min(k, sae.cfg.d_sae))
    other = create_sae(cfg).to(mean_D.device)
    rows_FD = torch.randn(cfg.d_sae, cfg.d_in, generator=torch.Generator().manual_seed(seed)).to(mean_D.device)
    other.W_dec.copy_(rows_FD / rows_FD.norm(dim=-1, keepdim=True))
    other.W_enc.copy_(other.W_dec.T)
    other.b_dec.copy_(mean_D)
    return other


@torch.no_grad()
def shuffled(sae: SAE, seed: int) -> SAE:
    """The same autoencoder with the entries of every feature's directions permuted (those of W_enc likewise)."""
    other = copy.deepcopy(sae)
    generator = torch.Generator().manual_seed(seed)
    order_FD = torch.rand(sae.cfg.d_sae, sae.cfg.d_in, generator=generator).argsort(-1).to(sae.W_dec.device)
    other.W_dec.copy_(sae.W_dec.gather(1, order_FD))
    other.W_enc.copy_(sae.W_enc.T.gather(1, order_FD).T)
    return other


@torch.no_grad()
def _scaled(name: str, sae: SAE, mean_D: Tensor, sample_ND: Tensor, note: str) -> Reconstructor:
    centred, guess = sample_ND - mean_D, sae(sample_ND) - mean_D
    factor = float((centred * guess).sum() / guess.pow(2).sum().clamp_min(1e-30))

    def reconstruct(x_ND: Tensor) -> tuple[Tensor, Tensor]:
        x_hat_ND, active_N, _ = encode_once(sae, x_ND)
        return mean_D + factor * (x_hat_ND - mean_D), active_N

    return Reconstructor(name, reconstruct, f"{note}, times {factor:.3g}")

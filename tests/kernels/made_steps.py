"""Small SAEs of every architecture, and batches, for the tests of training steps."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.saes import SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE

D, F, K, LR = 6, 16, 2, 3e-3


def new_sae(arch: str, dtype: str = "float64") -> SAE:
    widths = (4, 10, F) if arch == "matryoshka" else ()
    cfg = SAEConfig(
        d_in=D, d_sae=F, arch=arch, k=K, k_aux=4, widths=widths, dtype=dtype, sparsity=0.05, bandwidth=0.4, aux_coefficient=0.5
    )  # fmt: skip
    sae, g = create_sae(cfg), torch.Generator().manual_seed(1)
    with torch.no_grad():
        W = torch.nn.functional.normalize(torch.randn(F, D, generator=g, dtype=torch.float64), dim=-1)
        sae.W_dec.copy_(W if sae.unit_norm_decoder else 1.3 * W)
        sae.W_enc.copy_(W.t() + 0.1 * torch.randn(D, F, generator=g, dtype=torch.float64))
        sae.b_enc.copy_(0.1 * torch.randn(F, generator=g, dtype=torch.float64))
        sae.b_dec.copy_(0.1 * torch.randn(D, generator=g, dtype=torch.float64))
        for name, vector in sae.named_parameters():
            if name == "threshold":
                vector.fill_(0.9)
            elif name in ("r_mag", "b_mag"):
                vector.copy_(0.2 * torch.randn(F, generator=g, dtype=torch.float64))
    return sae


def batch(i: int, n: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)

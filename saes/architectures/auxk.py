"""Losses that bring dead features back.

**AuxK** (Gao et al. 2024, arXiv 2406.04093, appendix A.2): the k_aux dead features with the largest pre-activations try to
explain the error e = x − x̂ that the active ones leave, L_aux = ‖e − ê‖². With few dead features its weight falls in proportion
*(ours, as in EleutherAI's sparsify)*. It reaches features that lose a competition, or stay below a threshold.

**Pre-activation loss**, μ·Σ ReLU(−π) over dead features (the loss on pre-activations that SAELens has for JumpReLU, here up to
0): a gate with π below 0 on every token gets no gradient from AuxK, and this pulls it up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels import topk_rows
from attlas.saes.base import SAE

MU = 0.01
"""Weight of the pre-activation loss; docs/saes.md has what more of it costs."""


def pre_activation_loss(sae: SAE, pre_BF: Tensor, dead_F: Tensor | None) -> Tensor:
    """α·μ·Σ ReLU(−π) over the dead features, mean over tokens, a scalar; 0 when nothing is dead. α is `aux_coefficient`."""
    if dead_F is None or sae.cfg.aux_coefficient == 0 or not bool(dead_F.any()):
        return pre_BF.new_zeros(())
    return sae.cfg.aux_coefficient * MU * torch.relu(-pre_BF[:, dead_F]).sum(-1).mean()


def auxk_loss(sae: SAE, x_BD: Tensor, x_hat_BD: Tensor, dead_F: Tensor | None) -> Tensor:
    """Weighted L_aux, a scalar; 0 when nothing is dead.

    Only the dead columns of the encoder are multiplied, so it costs in proportion to how many are dead.
    """
    if dead_F is None or sae.cfg.aux_coefficient == 0:
        return x_BD.new_zeros(())
    dead_idx = dead_F.nonzero().squeeze(-1)
    n_dead = len(dead_idx)
    if n_dead == 0:
        return x_BD.new_zeros(())
    k_full = sae.cfg.k_aux or max(1, sae.cfg.d_in // 2)
    k_aux = min(k_full, n_dead)
    error_BD = (x_BD - x_hat_BD).detach()
    centred_BD = x_BD - sae.b_dec if sae.cfg.apply_b_dec_to_input else x_BD
    pre_BF = centred_BD @ sae.W_enc[:, dead_idx] + sae.b_enc[dead_idx]
    values_BK, picked_BK = topk_rows(pre_BF, k_aux)
    f_BF = torch.zeros_like(pre_BF).scatter(-1, picked_BK, torch.relu(values_BK))
    e_hat_BD = f_BF @ sae.W_dec[dead_idx]
    raw = (error_BD - e_hat_BD).pow(2).sum(-1).mean()
    return sae.cfg.aux_coefficient * min(1.0, n_dead / k_full) * raw

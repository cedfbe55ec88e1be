"""Initial weights of a Lorsa from the attention layer it stands for.

Queries and keys are the layer's own (of the authors' library, `init_lorsa_with_mhsa`), biases too *(ours)*; with more query–key
heads than the layer has, each of its heads serves several, and key heads of grouped-query attention are repeated. Feature i of
a head gets a random unit direction d of the head's output for w_O, within the principal subspace of that output, and reads
with what follows from it, w_V = c·W_V W_O d (theirs, `init_W_D_with_active_subspace_per_head`, up to the scale). *Ours*: the
subspace holds 99 % of the variance, c = ½ as for autoencoders here, b_V takes the mean of z̃ out, and b_D is the output's mean.

`start="random"` is their plain start: Xavier-uniform queries and keys, normal values and outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attlas.errors import ConfigError, UnsupportedModelError
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.training.init import principal_subspace

if TYPE_CHECKING:
    from attlas.interp import HookedModel

CLOSE = 1e-2
"""Largest difference of attention at the start from the model's own; more means that the layer does something else."""


@dataclass(frozen=True)
class Sample:
    """A first look at the layer.

    Attributes:
        x, y: its input and output, [B, T, D].
        z: hook_z, [B, T, head, d_head].
        pattern: its attention on the first sequence, [head, T, T].
        keep_BT: positions that count.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    pattern: Tensor
    keep_BT: Tensor

    @property
    def scales(self) -> tuple[float, float]:
        """√D / E‖·‖ of input and output."""
        root = math.sqrt(self.x.shape[-1])
        norms = [float(t[self.keep_BT].norm(dim=-1).mean()) for t in (self.x, self.y)]
        return root / max(norms[0], 1e-12), root / max(norms[1], 1e-12)


def start_random(lorsa: Lorsa, sample: Sample, generator: torch.Generator) -> None:
    """Weights that know nothing of the layer but the mean of its output."""
    cfg = lorsa.cfg
    bound = math.sqrt(6 / (cfg.d_model * (cfg.d_qk_head + cfg.n_qk_heads)))  # xavier_uniform_ of [G, D, Q]
    for weight in (lorsa.W_Q, lorsa.W_K):
        weight.data = (torch.rand(weight.shape, generator=generator) * 2 - 1).to(weight) * bound
    lorsa.W_V.data = torch.randn(lorsa.W_V.shape, generator=generator).to(lorsa.W_V) / math.sqrt(cfg.d_sae)
    lorsa.W_O.data = torch.randn(lorsa.W_O.shape, generator=generator).to(lorsa.W_O) / math.sqrt(cfg.d_model)
    lorsa.b_D.data = sample.y[sample.keep_BT].mean(0).to(lorsa.b_D) * sample.scales[1]


@torch.no_grad()
def start_from_layer(
    lorsa: Lorsa,
    model: HookedModel,
    layer: int,
    sample: Sample,
    generator: torch.Generator,
    encoder_scale: float = 0.5,
    variance: float = 0.99,
) -> None:
    """Set the weights, in units of scaled inputs and outputs.

    Raises:
        ConfigError: the sizes are not those of the layer's heads.
        UnsupportedModelError: the layer's attention cannot be expressed with a Lorsa's queries and keys.
    """
    cfg, heads = lorsa.cfg, model.cfg.n_heads
    if cfg.d_qk_head != model.cfg.d_head or cfg.n_qk_heads % heads:
        raise ConfigError(
            f"to start from the layer, n_qk_heads={cfg.n_qk_heads} must be a multiple of its {heads} heads and "
            f"d_qk_head={cfg.d_qk_head} their width {model.cfg.d_head}; or use qk_start=random"
        )
    repeat, kv = cfg.n_qk_heads // heads, heads // model.cfg.n_kv_heads
    scale_in, scale_out = sample.scales
    for weight, bias, W, b, times in (
        (lorsa.W_Q, lorsa.b_Q, model.W_Q(layer), model.b_Q(layer), repeat),
        (lorsa.W_K, lorsa.b_K, model.W_K(layer), model.b_K(layer), repeat * kv),
    ):
        weight.data = W.repeat_interleave(times, 0).to(weight) / scale_in
        bias.data = b.repeat_interleave(times, 0).to(bias)
    _require_same_attention(lorsa, model, layer, sample, scale_in, repeat)

    W_V, b_V = (t.float().repeat_interleave(kv, 0) for t in (model.W_V(layer), model.b_V(layer)))
    W_O, each = model.W_O(layer).float(), cfg.d_sae // heads
    z = sample.z[sample.keep_BT].float()  # [N, head, d_head]
    for head in range(heads):
        out_ND = z[:, head] @ W_O[head]
        basis_RD = principal_subspace(out_ND, variance)
        rows = torch.randn(each, len(basis_RD), generator=generator).to(out_ND) @ basis_RD
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        back_Fd = encoder_scale * scale_out * rows @ W_O[head].T  # reads the head's value vector
        own = slice(head * each, (head + 1) * each)
        lorsa.W_O[own] = rows.to(lorsa.W_O)
        lorsa.W_V[own] = (back_Fd @ W_V[head].T / scale_in).to(lorsa.W_V)
        lorsa.b_V[own] = (back_Fd @ (b_V[head] - z[:, head].mean(0))).to(lorsa.b_V)
    lorsa.b_D.data = sample.y[sample.keep_BT].mean(0).to(lorsa.b_D) * scale_out


def _require_same_attention(
    lorsa: Lorsa, model: HookedModel, layer: int, sample: Sample, scale_in: float, repeat: int
) -> None:
    pattern = lorsa.pattern(sample.x[:1] * scale_in)[0, ::repeat]
    kept = sample.keep_BT[0].nonzero()
    text = int(kept.amax()) + 1 if len(kept) else 1  # padding is attended to by padding alone
    off = float((pattern - sample.pattern.to(pattern))[:, :text, :text].abs().max())
    if off > CLOSE:
        raise UnsupportedModelError(
            f"the attention of layer {layer} of {model.name} ({model.cfg.model_type}) differs by {off:.2g} from what its "
            "queries and keys alone give, so a Lorsa cannot start from it; use qk_start=random"
        )

"""Where the modules of a Hugging Face model are: what a family adapter returns, and all that the hooks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attlas.errors import UnsupportedModelError
from attlas.interp.config import ModelConfig
from attlas.interp.fused import FusedQKV
from attlas.kernels import AttentionRule

Rotary = Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


class QKNorm(Protocol):
    """Norms of queries and keys, [B, T, head, d_head], before the rotary embedding."""

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(q, k) normed."""

    def factors(self, which: str, x: Tensor) -> Tensor:
        """What the norm of "q" or "k" multiplies each coordinate of x [..., head, d_head] with: weight / scale."""


@dataclass(frozen=True)
class LayerModules:
    """The modules of one transformer layer.

    Attributes:
        block: the layer itself; its input is resid_pre, its output resid_post.
        attn, mlp: the sub-layers. `attn` receives the attention mask.
        ln1, ln2: the norms in front of them; None where there is none (OLMo 2), or where one serves both (GPT-J: ln1).
        q, k, v: projections of separate families; with a fused one (GPT-2) all three are that module.
        out_proj: W_O; its input is hook_z with heads concatenated.
        down_proj: W_out of the MLP; its input is mlp.hook_post. None for a mixture of experts.
        attn_out, mlp_out: the modules whose output joins the residual stream (DINOv2: after the layer scale; Gemma 2 and
            OLMo 2: after a norm).
        rule: which keys a query may attend to (causality, sliding window), what scores are multiplied with and capped by, and
            a learned logit a head that takes mass from the keys (gpt-oss).
        fused: layout of a fused projection, or None.
        qk_norm: norms of queries and keys, or None.
        mid: the module whose input is resid_mid; None when attention and MLP read the same residual stream.
    """

    block: nn.Module
    attn: nn.Module
    mlp: nn.Module
    ln1: nn.Module | None
    ln2: nn.Module | None
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out_proj: nn.Module
    down_proj: nn.Module | None
    attn_out: nn.Module
    mlp_out: nn.Module
    rule: AttentionRule
    mid: nn.Module | None
    fused: FusedQKV | None = None
    qk_norm: QKNorm | None = None

    @property
    def scale(self) -> float:
        """What scores are multiplied with, usually 1/√d_head."""
        assert self.rule.scale is not None
        return self.rule.scale

    @property
    def attn_dropout(self) -> float:
        """Probability with which attention weights are dropped in training."""
        attn: Any = self.attn
        p: Any = getattr(attn, "attn_dropout", None) or getattr(attn, "attention_dropout", 0.0)
        own = getattr(attn, "dropout", None)  # CLIP, SigLIP: a number
        return float(own) if isinstance(own, float) else float(getattr(p, "p", p))


@dataclass(frozen=True)
class ModelStructure:
    """A whole model, as a family adapter sees it.

    Attributes:
        cfg: shape and kind.
        layers: one entry a layer.
        embed: module whose output is hook_embed.
        pos_embed: module whose output is hook_pos_embed, or None.
        pre_norm: a norm between the embeddings and the first layer (CLIP), or None.
        pool: the head that draws an image's embedding from the patches by attention (SigLIP), or None.
        interpolates: whether positions must be asked to be interpolated to an image of another size.
        independent: whether each class's probability is the sigmoid of its own logit (SigLIP with classes given as text).
        shuffles: whether `embed` orders patches by noise, and returns two more values (ViT-MAE).
        final_norm: the norm after the last layer; of CLIP it is given CLS alone, [B, d_model].
        unembed: Linear from the normed state to vocabulary or classes, or None for a backbone, and where there is none
            (`cfg.n_classes` then says that there are classes all the same).
        rotary: applies RoPE to (q, k) of [B, head, T, d_head], or None.
        gain_offset: what is added to a norm's weight (Gemma: 1).
        logit_softcap: c of logits c·tanh(logit/c), or None.
    """

    cfg: ModelConfig
    layers: tuple[LayerModules, ...]
    embed: nn.Module
    final_norm: nn.Module
    unembed: nn.Module | None = None
    pos_embed: nn.Module | None = None
    pre_norm: nn.Module | None = None
    pool: nn.Module | None = None
    interpolates: bool = False
    independent: bool = False
    shuffles: bool = False
    rotary: Rotary | None = None
    gain_offset: float = 0.0
    logit_softcap: float | None = None
    notes: tuple[str, ...] = field(default=())

    def capped(self, logits: Tensor) -> Tensor:
        """What the unembedding gives as the model hands it out."""
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def find(module: nn.Module, *paths: str) -> nn.Module:
    """The first of several dotted paths that exists (transformers renames modules between versions).

    Raises:
        UnsupportedModelError: none exists.
    """
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    raise UnsupportedModelError(
        f"{type(module).__name__} has none of the modules {list(paths)}; this version of transformers lays it out anew"
    )


def norm_eps(norm: nn.Module) -> float:
    """What a norm adds to the variance or mean square."""
    eps: Any = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0)
    return float(eps)


def linear_weight(module: nn.Module) -> Tensor:
    """Weight of a Linear or a GPT-2 Conv1D as [in, out]."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    # By base classes, for parametrized ones too (torch makes a subclass named ParametrizedConv1D).
    return weight if any(c.__name__ == "Conv1D" for c in type(module).__mro__) else weight.T


def linear_bias(module: nn.Module, width: int) -> Tensor:
    """Bias [out], zeros where the layer has none."""
    bias = getattr(module, "bias", None)
    weight: Tensor = module.weight  # type: ignore[assignment]
    return bias if bias is not None else torch.zeros(width, dtype=weight.dtype, device=weight.device)

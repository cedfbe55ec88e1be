"""What every family's model says of itself, in one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ContextLengthError

DEFAULT_SEQ_LEN = 256

# What a family does that the plain GPT-2 or Llama layer does not, in words for errors and tables.
TRAITS = {
    "parallel": "attention and MLP that read the same residual stream",
    "post_norm": "norms between sub-layers and the residual stream",
    "qk_norm": "norms of queries and keys",
    "softcap": "soft-capped attention scores",
    "sinks": "learned attention sinks",
    "logit_softcap": "soft-capped logits",
    "experts": "a mixture of experts in place of the MLP",
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and kind of a model.

    Attributes:
        family: of the adapter, such as "gpt2", "llama", "vit".
        model_type: transformers' own name, such as "dinov2".
        n_layers, n_heads, n_kv_heads: counts; n_kv_heads < n_heads means grouped-query attention.
        d_model, d_head, d_mlp: widths.
        n_ctx: longest sequence, in tokens (for ViT: patches + prefix tokens at the native image size).
        d_vocab: vocabulary size, 0 for vision models.
        n_classes: classes of the classifier head, 0 without one.
        causal: whether a token sees only earlier ones.
        positional: "learned" or "rotary".
        rotary_dim: leading coordinates of a head that rotate; 0 for all (or none, with learned positions).
        rotary_pairs: which coordinates turn together: "half" (i and i + rotary_dim/2) or "next" (2i and 2i + 1).
        norm: "ln" or "rms".
        traits: what sets a family apart and some analyses cannot take into account; see `TRAITS`.
        n_prefix_tokens: tokens before the patches (CLS, distillation, registers); 0 for text.
        prefix_names: what they are, in order, such as ("CLS", "register 1").
        grid: patches as (rows, columns) at the native image size; (0, 0) for text.
        image_size: (height, width) in pixels; (0, 0) for text.
        patch_size: pixels a side; 0 for text.
    """

    family: str
    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_ctx: int
    d_vocab: int = 0
    n_classes: int = 0
    causal: bool = True
    positional: str = "learned"
    rotary_dim: int = 0
    rotary_pairs: str = "half"
    norm: str = "ln"
    traits: frozenset[str] = frozenset()
    n_prefix_tokens: int = 0
    prefix_names: tuple[str, ...] = ()
    grid: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    patch_size: int = 0

    @property
    def n_rotating(self) -> int:
        """How many coordinates of a head, the first ones, its position turns."""
        return (self.rotary_dim or self.d_head) if self.positional == "rotary" else 0

    def sequence_length(self, asked: int) -> int:
        """Length of packed sequences: as asked, where the default of 256 may be cut to a shorter context window.

        Raises:
            ContextLengthError: more than the default was asked for, and it does not fit.
        """
        if asked > max(self.n_ctx, DEFAULT_SEQ_LEN):
            raise ContextLengthError(
                f"seq_len {asked} is longer than the context window ({self.n_ctx}); use seq_len ≤ {self.n_ctx}"
            )
        return min(asked, self.n_ctx)

"""What every family's model says of itself, in one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ContextLengthError

DEFAULT_SEQ_LEN = 256


@dataclass(frozen=True)
class ModelConfig:
    """Shape and kind of a model.

    Attributes:
        family: "gpt2", "llama" or "vit".
        model_type: transformers' own name, such as "dinov2".
        n_layers, n_heads, n_kv_heads: counts; n_kv_heads < n_heads means grouped-query attention.
        d_model, d_head, d_mlp: widths.
        n_ctx: longest sequence, in tokens (for ViT: patches + prefix tokens at the native image size).
        d_vocab: vocabulary size, 0 for vision models.
        n_classes: classes of the classifier head, 0 without one.
        causal: whether a token sees only earlier ones.
        positional: "learned" or "rotary".
        norm: "ln" or "rms".
        n_prefix_tokens: tokens before the patches (CLS, distillation, registers); 0 for text.
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
    norm: str = "ln"
    n_prefix_tokens: int = 0
    grid: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    patch_size: int = 0

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

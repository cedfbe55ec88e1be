"""What defines a sparse autoencoder: its function, its loss, and what it was trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attlas.errors import ConfigError

NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LARGEST = 2**40  # weights of one matrix; more is a mistake in a file, caught before anything is allocated
_WHOLE = ("d_in", "d_sae", "k")
_WHOLE_OR_NONE = ("k_aux", "n_heads", "d_head", "context_size", "skip_positions")
_NUMBERS = ("sparsity", "aux_coefficient", "bandwidth")
_TEXTS = ("arch", "normalisation", "dtype", "hook_name", "model_name", "model_hash", "data_name", "data_hash")


@dataclass(frozen=True)
class SAEConfig:
    """A sparse autoencoder's function, loss and provenance. It is saved with the weights.

    Attributes:
        d_in: width D of the activations; for `hook_z`, heads × d_head.
        d_sae: number of features F.
        arch: one of `attlas.saes.ARCHITECTURES`.
        k: active features per token (TopK families; the others ignore it).
        sparsity: λ of the sparsity penalty (standard, gated, jumprelu; the TopK families ignore it).
        aux_coefficient: weight α of the loss that revives dead features (AuxK, or gated's pre-activation loss).
        k_aux: how many dead features may explain the error; None is d_in // 2.
        bandwidth: width of the straight-through window around the threshold (jumprelu).
        widths: nested dictionary sizes, increasing, the last equal to d_sae (matryoshka); empty chooses
            d_sae/16, /8, /4, /2 and d_sae.
        apply_b_dec_to_input: subtract b_dec before encoding. False only in some foreign SAEs.
        normalisation: per-token normalisation before encoding, undone after decoding: "none", "layer_norm" or
            "constant_norm_rescale". Attlas trains with "none" (its scalar normalisation is folded into the weights).
        dtype: of the weights.
        hook_name: where the activations are read, such as "blocks.3.attn.hook_z"; "" when unknown.
        model_name: the model trained on; "" when unknown.
        model_hash: hash of that model's weights; "" when unknown.
        n_heads: heads concatenated in d_in (`hook_z` only), else None.
        d_head: width of one head (`hook_z` only), else None.
        context_size: sequence length trained on, or None.
        data_name, data_hash: the text or images trained on; "" when unknown.
        skip_positions: leading positions it was trained without, or None when unknown.
        exclude_tokens: tokens it was trained without, as names (bos, eos …), token strings or ids.

    Raises:
        ConfigError: a value is of the wrong type, a size is below 1, k exceeds d_sae, or widths do not nest.
    """

    d_in: int
    d_sae: int
    arch: str = "topk"
    k: int = 32
    sparsity: float = 1.0
    aux_coefficient: float = 1 / 32
    k_aux: int | None = None
    bandwidth: float = 0.05
    widths: tuple[int, ...] = ()
    apply_b_dec_to_input: bool = True
    normalisation: str = "none"
    dtype: str = "float32"
    hook_name: str = ""
    model_name: str = ""
    model_hash: str = ""
    n_heads: int | None = None
    d_head: int | None = None
    context_size: int | None = None
    data_name: str = ""
    data_hash: str = ""
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        if self.d_in < 1 or self.d_sae < 1:
            raise ConfigError(f"an SAE of d_in={self.d_in} and d_sae={self.d_sae} is empty; give both at least 1")
        if not 1 <= self.k <= self.d_sae:
            raise ConfigError(f"k={self.k} must be between 1 and d_sae={self.d_sae}")
        if self.sparsity < 0 or self.aux_coefficient < 0 or self.bandwidth <= 0:
            raise ConfigError(
                f"sparsity={self.sparsity} and aux_coefficient={self.aux_coefficient} must not be negative, "
                f"and bandwidth={self.bandwidth} must be above 0"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ConfigError(f"normalisation '{self.normalisation}' is unknown; use {', '.join(NORMALISATIONS)}")
        widths = self.widths
        if widths and (list(widths) != sorted(set(widths)) or widths[0] < 1 or widths[-1] != self.d_sae):
            raise ConfigError(f"widths {list(widths)} must increase from at least 1 to d_sae={self.d_sae}")
        if self.n_heads and self.d_head and self.n_heads * self.d_head != self.d_in:
            raise ConfigError(f"{self.n_heads} heads of {self.d_head} do not make d_in={self.d_in}")
        if self.d_in * self.d_sae > LARGEST:
            raise ConfigError(f"d_in={self.d_in} times d_sae={self.d_sae} is larger than any SAE; the file is damaged")

    def _check_types(self) -> None:
        """Values come from files too, where anything can stand."""

        def refuse(name: str, wanted: str) -> None:
            raise ConfigError(f"{name}={getattr(self, name)!r:.60} must be {wanted}")

        for name in (*_WHOLE, *_WHOLE_OR_NONE):
            value = getattr(self, name)
            if not _is_whole(value) and not (value is None and name in _WHOLE_OR_NONE):
                refuse(name, "a whole number")
            least = 0 if name in ("skip_positions", "n_heads", "d_head") else 1
            if name in _WHOLE_OR_NONE and value is not None and value < least:
                refuse(name, f"at least {least}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                refuse(name, "a finite number")
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                refuse(name, "a string")
        if not isinstance(self.apply_b_dec_to_input, bool):
            refuse("apply_b_dec_to_input", "true or false")
        if not isinstance(self.widths, tuple) or not all(_is_whole(width) for width in self.widths):
            refuse("widths", "whole numbers")
        if not isinstance(self.exclude_tokens, tuple) or not all(isinstance(t, str) for t in self.exclude_tokens):
            refuse("exclude_tokens", "strings")
        if self.dtype not in DTYPES:
            refuse("dtype", f"one of {', '.join(DTYPES)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "widths": list(self.widths), "exclude_tokens": list(self.exclude_tokens)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SAEConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a key is unknown, a value is out of range, or d_in or d_sae is missing.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"an SAE's configuration must be an object, not {values!r:.60}")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(name for name in values.keys() - known if values[name] not in (None, False, "", [], {}))
        if unknown:
            raise ConfigError(f"key '{unknown[0]}' of an SAE's configuration is unknown here; upgrade attlas")
        missing = [name for name in ("d_in", "d_sae") if name not in values]
        if missing:
            raise ConfigError(f"an SAE's configuration lacks {', '.join(missing)}")
        kept: dict[str, Any] = {
            n: tuple(value) if isinstance(value, list) else value for n, value in values.items() if n in known
        }
        return cls(**kept)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

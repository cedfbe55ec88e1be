"""What defines a Lorsa: its sizes, how its queries and keys are made, and what it was trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attlas.errors import ConfigError
from attlas.interp.names import layer_of

ACTIVATIONS = ("topk", "jumprelu", "relu")
_WHOLE = ("d_model", "d_sae", "n_qk_heads", "d_qk_head", "n_ctx", "k")
_NUMBERS = ("attn_scale", "qk_norm_eps")


@dataclass(frozen=True)
class LorsaRotary:
    """How queries and keys turn with their position (RoPE), by the settings of Language-Model-SAEs.

    Attributes:
        dim: leading coordinates of a head that turn; even.
        base: θ of the frequencies θ^(−2i/dim).
        adjacent_pairs: whether 2i and 2i + 1 turn together; otherwise i and i + dim/2.
        ntk_factor, ntk_low, ntk_high: Llama 3's scaling by parts (factor, low_freq_factor, high_freq_factor); None without.
        old_context: the context length it was scaled from.

    Raises:
        ConfigError: dim is odd or below 2, or a number is not above 0.
    """

    dim: int
    base: float = 10_000.0
    adjacent_pairs: bool = False
    ntk_factor: float | None = None
    ntk_low: float = 1.0
    ntk_high: float = 4.0
    old_context: int = 2048

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ConfigError(f"rotary dim={self.dim} must be even and at least 2")
        for name in ("base", "ntk_factor", "ntk_low", "ntk_high", "old_context"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"rotary {name}={value} must be above 0")


@dataclass(frozen=True)
class LorsaConfig:
    """A Lorsa's function and provenance. It is saved with the weights.

    Attributes:
        d_model: width D of what it reads and writes.
        d_sae: number of features F, each a head with one-dimensional values; a multiple of n_qk_heads.
        n_qk_heads: query–key heads G; F/G consecutive features share one.
        d_qk_head: width of a query.
        n_ctx: longest sequence.
        k: active features a token ("topk").
        activation: "topk", "jumprelu" or "relu"; Attlas trains topk.
        attn_scale: what scores are divided by; None is √d_qk_head.
        rotary: how positions enter the scores; None where they stand in the residual stream (learned positions).
        qk_norm: an RMS norm of queries and keys, weights by head, before the rotation.
        qk_norm_eps: what it adds to the mean square.
        hook_in, hook_out: where it reads and what it replaces.
        model_name, model_hash, data_name, data_hash: what it was trained on; "" when unknown.
        skip_positions: leading positions it was trained without, or None when unknown.
        exclude_tokens: tokens it was trained without, as names, strings or ids.

    Raises:
        ConfigError: a size is below 1, k exceeds d_sae, or d_sae is no multiple of n_qk_heads.
    """

    d_model: int
    d_sae: int
    n_qk_heads: int
    d_qk_head: int
    n_ctx: int
    k: int = 16
    activation: str = "topk"
    attn_scale: float | None = None
    rotary: LorsaRotary | None = None
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6
    hook_in: str = ""
    hook_out: str = ""
    model_name: str = ""
    model_hash: str = ""
    data_name: str = ""
    data_hash: str = ""
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r:.60} of a Lorsa must be a whole number of at least 1")
        if self.k > self.d_sae:
            raise ConfigError(f"k={self.k} must be between 1 and d_sae={self.d_sae}")
        if self.d_sae % self.n_qk_heads:
            whole = max(1, round(self.d_sae / self.n_qk_heads)) * self.n_qk_heads
            raise ConfigError(
                f"d_sae={self.d_sae} features do not divide among n_qk_heads={self.n_qk_heads}; give {whole}, say"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation '{self.activation}' of a Lorsa is unknown; use {', '.join(ACTIVATIONS)}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value!r:.60} of a Lorsa must be a number above 0")
        if self.rotary is not None and self.rotary.dim > self.d_qk_head:
            raise ConfigError(f"rotary dim={self.rotary.dim} exceeds d_qk_head={self.d_qk_head}")

    arch = "lorsa"

    @property
    def group_size(self) -> int:
        """Features that share a query–key head."""
        return self.d_sae // self.n_qk_heads

    @property
    def divisor(self) -> float:
        """What scores are divided by."""
        return math.sqrt(self.d_qk_head) if self.attn_scale is None else self.attn_scale

    @property
    def layer(self) -> int:
        """Layer of the model whose attention it stands for.

        Raises:
            ConfigError: its hook names none.
        """
        found = layer_of(self.hook_out)
        if found is None:
            raise ConfigError(f"the Lorsa does not say which layer it stands for (its hook is '{self.hook_out}')")
        return found

    @property
    def n_parameters(self) -> int:
        """Numbers in all its weights and biases."""
        of_heads = self.n_qk_heads * self.d_qk_head * (2 * self.d_model + 2 + 2 * self.qk_norm)
        of_features = self.d_sae * (2 * self.d_model + 1 + (self.activation == "jumprelu"))
        return of_heads + of_features + self.d_model

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "exclude_tokens": list(self.exclude_tokens)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LorsaConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a key is unknown or missing, or a value is out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ConfigError(f"key '{unknown[0]}' of a Lorsa's configuration is unknown here; upgrade attlas")
        kept = dict(values)
        try:
            if kept.get("rotary") is not None:
                kept["rotary"] = LorsaRotary(**kept["rotary"])
            return cls(**{**kept, "exclude_tokens": tuple(kept.get("exclude_tokens", ()))})
        except TypeError as error:
            raise ConfigError(f"a Lorsa's configuration is incomplete ({error})") from error

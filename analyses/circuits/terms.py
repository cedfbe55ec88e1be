"""What a logit difference, a feature or a head is the sum of, with patterns and norms frozen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.errors import ConfigError, ConservationError
from attlas.saes.decompose import check_feature, encoder_rows

TOLERANCE = 1e-4
IN_FLOAT32 = (
    "open the model in float32 (dtype=torch.float32; transformers keeps the type that a checkpoint was saved in)"
)
"""What mends terms that do not add up: half precision rounds each of them by more than the tolerance."""


@dataclass(frozen=True)
class LogitTarget:
    """Mean logit of `right` − mean logit of `wrong` (none: the logits alone) at a position."""

    right: tuple[int, ...]
    wrong: tuple[int, ...] = ()
    position: int = -1


@dataclass(frozen=True)
class FeatureTarget:
    """An attention feature's activation at a position."""

    layer: int
    feature: int
    position: int


@dataclass(frozen=True)
class Terms:
    """What one node is the sum of.

    Attributes:
        value: that must come out.
        parts, weights: n terms and their coefficients, float64 [n].
        loadings: by reading (into logits: writing) head, [n, head], or None.
        constant: what biases add.
        reads: [head, src, d_model] covectors, or [1, 1, d_model] at `first` for logits.
    """

    value: float
    parts: list[Part]
    weights: Tensor
    loadings: Tensor | None
    constant: float
    reads: Tensor
    first: int = 0

    @property
    def gap(self) -> float:
        """|Σ − value| as a share of the value."""
        gap = abs(float(self.weights.sum()) + self.constant - self.value)
        # A value that nearly cancels cannot be met closer than float32 sums of this size allow.
        return gap / max(abs(self.value), 1e-2 * float(self.weights.abs().sum()), 1e-12)


def logit_terms(frozen: FrozenPass, target: LogitTarget) -> Terms:
    """The logit difference as terms of the last residual stream."""
    position, last = frozen.at(target.position), frozen.model.cfg.n_layers
    d_vocab = frozen.logits.shape[-1]
    for i in (*target.right, *target.wrong):
        if not 0 <= i < d_vocab:
            raise ConfigError(f"token id {i} is out of range; {frozen.model.name} has 0–{d_vocab - 1}")
    if not target.right:
        raise ConfigError("a logit target needs at least one right token id")
    covector, constant, value = frozen.logit_covector(position, list(target.right), list(target.wrong))
    parts, vectors = frozen.parts(position, last)
    loadings = torch.zeros(len(parts), frozen.model.cfg.n_heads, dtype=torch.float64)

    @functools.cache  # many features share a layer
    def of_layer(layer: int) -> tuple[Tensor, Tensor, Tensor]:
        coefficients, _, _, W_dec = frozen.decomposed(layer, position)
        return coefficients, W_dec, torch.einsum("hed,d->he", frozen.written(layer, position)[0], covector)

    for i, part in enumerate(parts):
        if part.kind == "feature" and frozen.saes[part.layer][0].endswith("hook_z"):
            coefficients, W_dec, onto_z = of_layer(part.layer)
            loadings[i] = (coefficients[part.feature] * W_dec[part.feature].double().view_as(onto_z) * onto_z).sum(-1)
        elif part.kind == "head":
            loadings[i, part.head] = float(vectors[i] @ covector)
    return Terms(value, parts, vectors @ covector, loadings, constant, covector[None, None], position)


def attention_terms(frozen: FrozenPass, layer: int, dest: int, row: Tensor, value: float, constant: float) -> Terms:
    """Σ_h row[h]·z^h at dest as terms of the residual streams at its sources; row float64 [head, d_head]."""
    reads, _, more = frozen.back_through_attention(layer, dest, row)
    parts: list[Part] = []
    loadings = []
    for src in range(reads.shape[1]):
        found, vectors = frozen.parts(src, layer)
        parts += found
        loadings.append(vectors @ reads[:, src].T)
    by_head = torch.cat(loadings)
    return Terms(value, parts, by_head.sum(1), by_head, constant + more, reads)


def feature_row(
    frozen: FrozenPass, layer: int, feature: int, position: int, path: str = "magnitude"
) -> tuple[Tensor, float, float]:
    """An attention feature as a linear function of z: (row [head, d_head], constant, its pre-activation).

    The scale of a token's normalisation is frozen; of gated features the magnitude is taken, or the gate by `path`. The
    magnitude of an active feature is its activation.

    Raises:
        ConfigError: no autoencoder there, no such feature or path.
    """
    if layer not in frozen.saes:
        have = ", ".join(map(str, sorted(frozen.saes))) or "none"
        raise ConfigError(f"layer {layer} has no autoencoder to take feature {feature} from; there are: {have}")
    hook, sae = frozen.saes[layer]
    check_feature(sae, feature)
    x = frozen.cache[hook][position].flatten()
    rows, constants = encoder_rows(sae, x, [feature], path)
    row, constant = rows[0], float(constants[0])
    value = float(row @ x) + constant
    cfg = frozen.model.cfg
    if hook.endswith("hook_z"):
        return row.view(cfg.n_heads, cfg.d_head), constant, value
    W_O, b_O = frozen.written(layer, position)
    return torch.einsum("hed,d->he", W_O, row), constant + float(row @ b_O), value


def direct_attribution(frozen: FrozenPass, layer: int, feature: int, position: int, path: str = "magnitude") -> Tensor:
    """DFA of one feature at one position, float64 [head, src]: A[h, dest, src]·(v_src · row[h]).

    With the constant of `feature_row` its sum is the pre-activation.

    Example:
        >>> from attlas.analyses.circuits import FrozenPass, direct_attribution
        >>> frozen = FrozenPass(model, task.tokens[0], {hook: sae})
        >>> (feature, _), *_ = frozen.strongest(2, 1)[4]
        >>> direct_attribution(frozen, 2, feature, 4).shape  # [head, source]
        torch.Size([6, 5])
    """
    row, _, _ = feature_row(frozen, layer, feature, frozen.at(position), path)
    return frozen.back_through_attention(layer, frozen.at(position), row)[1]


def check(terms: Terms, what: str) -> float:
    """The relative gap, when it is within 1e-4.

    Raises:
        ConservationError: it is not; says by how much.
    """
    if not terms.gap <= TOLERANCE:
        raise ConservationError(
            f"the terms of {what} miss its value {terms.value:.6g} by {terms.gap:.1e} of it; {IN_FLOAT32}"
        )
    return terms.gap

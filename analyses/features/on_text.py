"""Which features of which autoencoders fire on one text, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.attribution import attribute_features, attribution_hooks
from attlas.errors import PromptError, UnsupportedModelError
from attlas.interp import HookedModel, as_hooked
from attlas.saes.base import SAE
from attlas.saes.decompose import check_saes

MOST_TOKENS = 512
_ROWS = 64  # encoded at once: [64, d_sae] floats are 268 MB at a million features


@dataclass(frozen=True)
class Firing:
    """Every (hook, position, feature) with an activation above 0.

    Attributes:
        tokens: [T] as text.
        hooks: the autoencoders' hooks, in the order given.
        hook: int16 [E], index into `hooks`; position, feature: int32 [E]; activation: float32 [E].
    """

    tokens: tuple[str, ...]
    hooks: tuple[str, ...]
    hook: np.ndarray
    position: np.ndarray
    feature: np.ndarray
    activation: np.ndarray

    def ranked(
        self, largest: Mapping[tuple[str, int], float] | None = None, *, at: int | None = None, skip: int = 1
    ) -> list[dict[str, Any]]:
        """One row a feature, the strongest first.

        Args:
            largest: (hook, feature) → the largest activation on a corpus: features are then ranked by their share of it,
                so that those of small scale are seen too; without, by activation.
            at: only what fires at this position.
            skip: first positions left out, where attention rests and many features fire always.

        Returns:
            rows with hook, feature, activation (its largest on the text), position (where), n (tokens it fires on) and
            share (of its largest on the corpus, None where that is not known).
        """
        keep = self.position == at if at is not None else self.position >= skip
        hook, feature, position, value = (a[keep] for a in (self.hook, self.feature, self.position, self.activation))
        order = np.lexsort((position, -value, feature, hook))
        key = hook[order].astype(np.int64) << 32 | feature[order]
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        rows = []
        for i, n in zip(order[first], counts, strict=True):
            place = (self.hooks[hook[i]], int(feature[i]))
            most = (largest or {}).get(place)
            row = {"hook": place[0], "feature": place[1], "activation": float(value[i]), "position": int(position[i])}
            rows.append(row | {"n": int(n), "share": float(value[i]) / most if most else None})
        rows.sort(key=lambda r: (-(r["share"] if r["share"] is not None else -1.0), -r["activation"], r["feature"]))
        return rows

    def along(self, hook: str, feature: int) -> list[float]:
        """[T] activations of one feature."""
        found = [0.0] * len(self.tokens)
        mine = (self.hook == self.hooks.index(hook)) & (self.feature == feature)
        for position, value in zip(self.position[mine], self.activation[mine], strict=True):
            found[position] = float(value)
        return found


def _tokens(model: HookedModel, text: str | Tensor) -> Tensor:
    tokens = model.to_tokens(text) if isinstance(text, str) else text.reshape(1, -1)
    most = min(MOST_TOKENS, model.cfg.n_ctx)
    if tokens.shape[1] > most:
        raise PromptError(f"the text has {tokens.shape[1]} tokens; at most {most} are read at once: give less of it")
    return tokens


@torch.no_grad()
def firing(model: Any, saes: Mapping[str, SAE], text: str | Tensor) -> Firing:
    """Run a text once and encode it with every autoencoder.

    Args:
        model: a HookedModel, or anything `as_hooked` takes; a language model.
        saes: hook → autoencoder on it.
        text: a string, or token ids int64 [T].

    Raises:
        PromptError: an empty text, or more than 512 tokens (or the model's context).
        UnsupportedModelError: a vision model.
        ConfigError: an autoencoder of another width, or on a hook that the model does not have.

    Example:
        >>> from attlas.analyses.features import firing
        >>> found = firing(model, {hook: sae}, "the white whale, and the white")
        >>> len(found.tokens), found.activation.shape == found.position.shape
        (8, True)
    """
    model = as_hooked(model)
    if model.cfg.family == "vit":
        raise UnsupportedModelError(f"{model.name} is a vision model and reads no text; look at its features on images")
    saes = check_saes(model, dict(saes))
    tokens = _tokens(model, text)
    cache = model.capture(tokens, list(saes))
    parts: list[tuple[np.ndarray, ...]] = []
    for i, (hook, sae) in enumerate(saes.items()):
        x = sae.flatten_heads(cache[hook])[0]
        for start in range(0, len(x), _ROWS):
            values = sae.encode(x[start : start + _ROWS].to(sae.W_enc.device)).float()
            position, feature = (values > 0).nonzero(as_tuple=True)
            found = values[position, feature]
            parts.append(
                tuple(a.cpu().numpy() for a in (torch.full_like(position, i), position + start, feature, found))
            )
    hook_, position_, feature_, activation = (np.concatenate([p[j] for p in parts] or [np.zeros(0)]) for j in range(4))
    return Firing(
        tuple(model.to_str_tokens(tokens[0])),
        tuple(saes),
        hook_.astype(np.int16),
        position_.astype(np.int32),
        feature_.astype(np.int32),
        activation.astype(np.float32),
    )


@torch.no_grad()
def sources(
    model: Any, sae: SAE, hook: str, text: str | Tensor, feature: int, positions: Sequence[int]
) -> list[list[float]]:
    """Which tokens made a feature fire: direct feature attribution of its pre-activation at some positions.

    Args:
        sae: on `hook`, a hook_z.
        positions: where it fires.

    Returns:
        for each position [T] contributions of the source tokens, summed over heads; with what biases add, these sum to
        the pre-activation.

    Raises:
        ConfigError: a hook without heads; else as `firing`.

    Example:
        >>> from attlas.analyses.features.on_text import sources
        >>> rows = sources(model, sae, hook, "the white whale", 0, [2])
        >>> rows[0][3:] == [0.0] * (len(rows[0]) - 3)  # later tokens are not seen
        True
    """
    model = as_hooked(model)
    tokens = _tokens(model, text)
    cache = model.capture(tokens, attribution_hooks(model, hook))
    at = torch.tensor(list(positions), dtype=torch.long, device=tokens.device)
    found = attribute_features(model, sae, hook, cache, torch.full_like(at, feature), at)
    return [[float(v) for v in row] for row in found.dfa.by_source]

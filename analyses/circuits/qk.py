"""Why a head looks where it looks: an attention score as a sum over pairs of terms, one at each end.

With norm scales frozen, the score s = q_dest · k_src · scale is bilinear in the two residual streams (Kamath et al.
2025, "Tracing attention computation through feature interactions", transformer-circuits.pub). Each stream is written as
its autoencoders' features, errors, MLPs and so on, and the norm's bias with b_Q or b_K as one more term; rotary
positions turn each term as they turn the whole, and heads that share keys share theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.logit_attribution import name_of
from attlas.analyses.circuits.terms import IN_FLOAT32, TOLERANCE
from attlas.data.figures import new_figure
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref
from attlas.errors import ConfigError, ConservationError, LayerRangeError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.decompose import SAEs

QK = TableSchema(
    "qk",
    "one pair of terms of one attention score",
    (
        column(
            "dest", pa.string(), "", "term at the destination, such as feature 2/831 @5; remainder for all not listed"
        ),
        column("src", pa.string(), "", "term at the source"),
        column("score", pa.float64(), "logits of attention", "its part of the score, scale included"),
    ),
)
SCHEMAS = (QK,)


@dataclass(frozen=True)
class QKConfig:
    """Which score, and how many pairs are listed.

    Attributes:
        layer, head: the query head.
        dest, src: token positions; negative ones count from the end.
        top_n: pairs listed, the largest by size; the rest is one row.
    """

    layer: int
    head: int
    dest: int = -1
    src: int = 0
    top_n: int = 100


@dataclass(frozen=True)
class QKResult(Result):
    """A score in pairs.

    Attributes:
        dest_parts, src_parts: terms, the last of each the constant of norm bias and b_Q or b_K.
        terms: float64 [n_dest, n_src]; they sum to the score.
        score: the model's own, scale included, before the softmax.
        pattern: the attention paid.
        gap: |Σ terms − score| / max(|score|, 1).
    """

    kind: ClassVar[str] = "qk"

    dest_parts: tuple[Part, ...]
    src_parts: tuple[Part, ...]
    terms: Tensor
    score: float
    pattern: float
    gap: float
    model: Ref
    tokens: tuple[str, ...]
    config: QKConfig

    def pairs(self, n: int | None = None) -> list[tuple[Part, Part, float]]:
        """(destination term, source term, score), the largest by size first."""
        flat = self.terms.flatten()
        order = flat.abs().argsort(descending=True)[: n if n is not None else self.config.top_n].tolist()
        width = self.terms.shape[1]
        return [(self.dest_parts[i // width], self.src_parts[i % width], float(flat[i])) for i in order]

    def side(self, which: str) -> list[tuple[Part, float]]:
        """Terms of one side ("dest" or "src"), summed over the other, the largest by size first."""
        parts, sums = (self.dest_parts, self.terms.sum(1)) if which == "dest" else (self.src_parts, self.terms.sum(0))
        return sorted(zip(parts, sums.tolist(), strict=True), key=lambda item: -abs(item[1]))

    def table(self) -> pa.Table:
        """Table qk."""
        rows = [{"dest": d.id, "src": s.id, "score": value} for d, s, value in self.pairs()]
        rest = float(self.terms.sum()) - sum(row["score"] for row in rows)  # type: ignore[misc]
        return QK.table([*rows, {"dest": "remainder", "src": "remainder", "score": rest}])

    def tables(self) -> dict[str, pa.Table]:
        return {"qk": self.table()}

    def plot(self, n: int = 15) -> Any:
        """Heatmap of the n largest terms of each side; all others together are the last row and column."""
        import plotly.graph_objects as go

        picks = []
        for sums in (self.terms.abs().sum(1), self.terms.abs().sum(0)):
            picks.append(sums.topk(min(n, len(sums))).indices.tolist())
        rows = self._with_rest(self.terms, picks[0])
        grid = self._with_rest(rows.T, picks[1]).T
        names = [[*[parts[i].id for i in pick], "the rest"] for parts, pick in zip(self._sides, picks, strict=True)]
        figure = new_figure(go.Heatmap(z=grid.numpy(), x=names[1], y=names[0], zmid=0))
        c = self.config
        title = f"Head {c.layer}.{c.head}, {c.dest} → {c.src}: score {self.score:.2f}, attention {self.pattern:.2f}"
        figure.update_layout(title=title, xaxis_title="source term", yaxis_title="destination term")
        return figure

    @property
    def _sides(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        return self.dest_parts, self.src_parts

    @staticmethod
    def _with_rest(grid: Tensor, pick: list[int]) -> Tensor:
        rest = torch.ones(len(grid), dtype=torch.bool)
        rest[pick] = False
        return torch.cat([grid[pick], grid[rest].sum(0, keepdim=True)])

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        return {
            "score": self.score,
            "pattern": self.pattern,
            "gap": self.gap,
            "n_pairs": self.terms.numel(),
            "strongest": [(d.id, s.id, value) for d, s, value in self.pairs(5)],
            "source_side": [(part.id, value) for part, value in self.side("src")[:5]],
        }

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model, None

    def _recorded_config(self) -> dict[str, Any]:
        return {**vars(self.config), "tokens": list(self.tokens)}

    @property
    def _seed(self) -> int | None:
        return 0


@torch.no_grad()
def qk_attribution(
    model: AnyModel,
    tokens: Tensor,
    config: QKConfig,
    *,
    saes: SAEs | None = None,
    frozen: FrozenPass | None = None,
) -> QKResult:
    """Split one attention score into pairs of terms.

    Args:
        tokens: one prompt, int64 [T] or [1, T].
        saes: hook → autoencoder on attn.hook_z or hook_attn_out; layers without one are split into heads.
        frozen: the prompt's pass, when it is there already.

    Raises:
        LayerRangeError, ConfigError: no such layer, head or position, or a source that the destination cannot see.
        ConservationError: the pairs do not add up to the score to 1e-4.

    Example:
        >>> from attlas.analyses.circuits import QKConfig, qk_attribution
        >>> result = qk_attribution(model, task.tokens[0], QKConfig(layer=3, head=0, dest=-1, src=1))
        >>> sorted(result.tables())
        ['qk']
    """
    model = as_hooked(model)
    frozen = frozen or FrozenPass(model, tokens, saes)
    layer, head = _check_head(model, config.layer, config.head)
    dest, src = frozen.at(config.dest), frozen.at(config.src)
    _check_seen(model, layer, dest, src)
    dest_parts, q = projected(frozen, layer, head, dest, "q")
    src_parts, k = projected(frozen, layer, head, src, "k")
    terms = q @ k.T * model.layers[layer].scale
    score = float(frozen.cache[f"blocks.{layer}.attn.hook_attn_scores"][head, dest, src])
    gap = abs(float(terms.sum()) - score) / max(abs(score), 1.0)
    if not gap <= TOLERANCE:
        raise ConservationError(
            f"the pairs of head {layer}.{head} at ({dest}, {src}) add up to {float(terms.sum()):.6g}, not {score:.6g}; "
            f"{IN_FLOAT32}"
        )
    pattern = float(frozen.cache[f"blocks.{layer}.attn.hook_pattern"][head, dest, src])
    names = tuple(frozen.str_tokens())
    return QKResult(tuple(dest_parts), tuple(src_parts), terms, score, pattern, gap, model.ref, names, config)


def _check_head(model: HookedModel, layer: int, head: int) -> tuple[int, int]:
    model.layer(layer)
    if not 0 <= head < model.cfg.n_heads:
        raise LayerRangeError(f"head {head} is out of range; {model.name} has heads 0–{model.cfg.n_heads - 1}")
    return layer, head


def _check_seen(model: HookedModel, layer: int, dest: int, src: int) -> None:
    """
    Raises:
        ConfigError: the destination does not attend to the source: it comes later, or lies outside a sliding window.
    """
    rule = model.layers[layer].rule
    if rule.causal and src > dest:
        raise ConfigError(f"position {dest} cannot see position {src}; choose a source at or before the destination")
    reach = rule.sliding_window
    if reach is not None and abs(dest - src) >= reach:
        raise ConfigError(
            f"position {src} is outside the sliding window of layer {layer} ({reach} positions): position {dest} sees "
            f"{max(0, dest - reach + 1)}–{dest} alone; choose a source there"
        )


@torch.no_grad()
def projected(frozen: FrozenPass, layer: int, head: int, position: int, which: str) -> tuple[list[Part], Tensor]:
    """Each term of the residual stream as a part of a head's query ("q") or key ("k"), rotated where the model rotates,
    behind any norm of queries and keys, its scale frozen.

    Raises:
        UnsupportedModelError: the model caps its scores: no sum of terms is a score.

    Returns: n parts, the last the constant, and float64 [n, d_head].
    """
    model = frozen.model
    model.require_plain("attribution of scores", "softcap")
    at = head if which == "q" else head // (model.cfg.n_heads // model.cfg.n_kv_heads)
    every = (model.W_Q(layer), model.b_Q(layer)) if which == "q" else (model.W_K(layer), model.b_K(layer))
    weight, bias = (t[at].detach().double() for t in every)
    parts, vectors = frozen.parts(position, layer)
    covectors, constants = frozen.through_norm(f"blocks.{layer}.ln1", position, weight.T)  # [d_head, d_model], [d_head]
    rows = torch.cat([vectors @ covectors.T, (constants + bias)[None]])
    norm, rotary = model.layers[layer].qk_norm, model.structure.rotary
    if norm is not None:
        rows = rows * norm.factors(which, frozen.cache[f"blocks.{layer}.attn.hook_{which}"][position])[at]
    if rotary is not None:
        cos, sin = (t[position].expand(1, len(rows), -1) for t in frozen.rope[layer])
        rows = rotary(rows[None, None], rows[None, None], (cos, sin))[0][0, 0]
    return [*parts, Part("constant", layer, position)], rows


def seen_by(frozen: FrozenPass, layer: int, dest: int) -> range:
    """The sources that a destination attends to at a layer."""
    return range(*frozen.model.layers[layer].rule.span(dest, dest, frozen.n_positions))


@torch.no_grad()
def key_contrast(frozen: FrozenPass, layer: int, head: int, dest: int, src: int) -> list[tuple[str, float]]:
    """What sets a source apart: each source-side term's part of (score there − mean score of all sources seen).

    What all keys share cancels, as it does in the softmax. Terms are named without position, the largest by size first.

    Raises:
        LayerRangeError, ConfigError: as `qk_attribution`.

    Example:
        >>> from attlas.analyses.circuits import FrozenPass, key_contrast
        >>> frozen = FrozenPass(model, task.tokens[0])
        >>> found = key_contrast(frozen, 3, 0, dest=5, src=2)
        >>> found[0][0]  # what sets the two keys apart most; its logits are found[0][1]
        'head 2.0'
    """
    layer, head = _check_head(frozen.model, layer, head)
    dest, src = frozen.at(dest), frozen.at(src)
    _check_seen(frozen.model, layer, dest, src)
    query = projected(frozen, layer, head, dest, "q")[1].sum(0)
    sources = seen_by(frozen, layer, dest)
    found: dict[str, float] = {}
    for position in sources:
        parts, keys = projected(frozen, layer, head, position, "k")
        share = (1.0 if position == src else 0.0) - 1.0 / len(sources)
        for part, value in zip(parts, (keys @ query * frozen.model.layers[layer].scale).tolist(), strict=True):
            name = name_of(part)
            found[name] = found.get(name, 0.0) + share * value
    return sorted(found.items(), key=lambda item: -abs(item[1]))

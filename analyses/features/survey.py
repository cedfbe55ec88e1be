"""What each head is for, by the features it writes most; and how many unrelated things that is.

Kissane et al. 2024 (arXiv 2406.17759, §4) read each head's ten features of largest weight attribution by hand. Here they
are grouped: two features belong together when the head writes the same direction for both (cosine of their decoder rows'
slices), when they fire on the same tokens (φ), or when both are induction features, which differ by token alone and do
one thing. Thresholds are ours.

How many groups that makes of unrelated directions hangs on the head: where its output is of low rank, random directions
fire together. So the groups are set against those of random dictionaries, whose features have the same norm in every
head's slice and the same density (see `attlas.analyses.features.null`). A head is *polysemantic* only where its features
fall into more groups than those, and *coherent* where into fewer: where the interval of the excess over their mean lies
beyond 95 % of the dictionaries. Beside it, as many features drawn at random from the same autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import DENSITY, FEATURE, HEAD, LAYER, PROMOTED, RANK_BY_SHARE, TOP_TOKENS
from attlas.analyses.features.attribution import head_shares
from attlas.analyses.features.config import HeadSurveyConfig
from attlas.analyses.features.directions import encoder_directions, offsets, reading
from attlas.analyses.features.logits import logit_effects
from attlas.analyses.features.null import null_directions
from attlas.analyses.features.relations import Coactivation
from attlas.analyses.features.stream import FeatureStream
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean, count_mean
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.names import layer_index
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae
from attlas.saes.positions import positions_for

_HEAD = (LAYER, HEAD)
SURVEY = TableSchema(
    "head_survey",
    "one head",
    (
        *_HEAD,
        column("n_features", pa.int16(), "features", "features grouped: the head's top ones by weight attribution"),
        column("n_groups", pa.int16(), "groups", "groups that remain"),
        column("largest_group", pa.int16(), "features", "size of the largest"),
        column("polysemantic", pa.bool_(), "", "the excess's interval lies above 95 % of random dictionaries"),
        column("verdict", pa.string(), "", "polysemantic, coherent (the interval lies below them) or as random"),
        column("null_groups", pa.float64(), "groups", "in random dictionaries of the same head norms, mean"),
        column("null_low", pa.float64(), "groups", "2.5 % quantile over dictionaries"),
        column("null_high", pa.float64(), "groups", "97.5 % quantile over dictionaries"),
        column("excess", pa.float64(), "groups", "groups less null_groups"),
        column("excess_low", pa.float64(), "groups", "its 95 % interval, by bootstrap over dictionaries"),
        column("excess_high", pa.float64(), "groups", "upper end"),
        column("control_groups", pa.float64(), "groups", "groups among as many features drawn at random, mean"),
        column("control_low", pa.float64(), "groups", "2.5 % quantile over draws"),
        column("control_high", pa.float64(), "groups", "97.5 % quantile over draws"),
    ),
)
HEAD_FEATURES = TableSchema(
    "head_features",
    "one head and one of its top features",
    (
        *_HEAD,
        RANK_BY_SHARE,
        FEATURE,
        column("share", pa.float64(), "fraction", "the head's part of the decoder row's norm"),
        column("group", pa.int16(), "", "group within the head, the largest is 0"),
        column("induction", pa.bool_(), "", "an induction feature, where families are known"),
        DENSITY,
        TOP_TOKENS,
        PROMOTED,
    ),
)
SCHEMAS = (SURVEY, HEAD_FEATURES)


def groups(related: np.ndarray) -> np.ndarray:
    """Connected components of a symmetric relation [n, n], numbered by size, the largest 0: int [n]."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(csr_matrix(related), directed=False)
    order = np.argsort(-np.bincount(label), kind="stable")
    renumber = np.empty_like(order)
    renumber[order] = np.arange(len(order))
    numbered: np.ndarray = renumber[label]
    return numbered


@dataclass(frozen=True)
class HeadSurveyResult(Result):
    """Rows of both tables, and the share of polysemantic heads."""

    kind: ClassVar[str] = "head_survey"

    heads: list[dict[str, Any]]
    features: list[dict[str, Any]]
    n_tokens: int
    config: HeadSurveyConfig

    def tables(self) -> dict[str, pa.Table]:
        """Tables head_survey and head_features."""
        return {"head_survey": SURVEY.table(self.heads), "head_features": HEAD_FEATURES.table(self.features)}

    def table(self) -> pa.Table:
        """Table head_survey."""
        return SURVEY.table(self.heads)

    def polysemantic(self) -> tuple[float, float, float]:
        """Share of polysemantic heads, with its 95 % interval over heads (NaN below eight)."""
        mean, low, high = count_mean(np.array([row["polysemantic"] for row in self.heads]))
        return float(mean), float(low), float(high)

    def plot(self) -> Any:
        """Groups by head, beside those of random dictionaries."""
        names = [f"{row['layer']}.{row['head']}" for row in self.heads]
        figure = new_figure()
        figure.add_bar(x=names, y=[row["n_groups"] for row in self.heads], name="its top features")
        low, mean, high = (np.array([row[k] for row in self.heads]) for k in ("null_low", "null_groups", "null_high"))
        error = {"type": "data", "array": high - mean, "arrayminus": mean - low}
        figure.add_scatter(x=names, y=mean, error_y=error, mode="markers", name="random dictionaries")
        figure.update_layout(xaxis_title="head", yaxis_title="groups", xaxis_type="category")
        return figure

    def summary(self) -> dict[str, Any]:
        """Share of polysemantic heads with interval, coherent ones; mean groups of heads, of null and control."""
        share, low, high = self.polysemantic()
        return {
            "n_heads": len(self.heads),
            "n_tokens": self.n_tokens,
            "polysemantic": share,
            "polysemantic_low": low,
            "polysemantic_high": high,
            "coherent": float(np.mean([row["verdict"] == "coherent" for row in self.heads])),
            "mean_groups_null": float(np.mean([row["null_groups"] for row in self.heads])),
            "mean_groups": float(np.mean([row["n_groups"] for row in self.heads])),
            "mean_groups_control": float(np.mean([row["control_groups"] for row in self.heads])),
        }


@torch.no_grad()
def head_survey(
    model: AnyModel,
    saes: Mapping[str, SAE],
    data: TokenDataset,
    config: HeadSurveyConfig | None = None,
    *,
    families: Mapping[str, Mapping[int, str]] | None = None,
    track: Track = no_track,
) -> HeadSurveyResult:
    """Survey every head of the layers that have an autoencoder on hook_z, in one pass over the text.

    Args:
        saes: hook → SAE.
        families: hook → feature → family (see `attlas.analyses.features`); without it induction features are told apart
            like any others.

    Raises:
        ConfigError: a hook is not an attention output (hook_z), where heads can be told apart.
        UnsupportedModelError: a vision model.

    Example:
        >>> from attlas.analyses.features import HeadSurveyConfig, head_survey
        >>> result = head_survey(model, {hook: sae}, text, HeadSurveyConfig(n_draws=5, n_dictionaries=20))
        >>> [row["head"] for row in result.heads]
        [0, 1, 2, 3, 4, 5]
    """
    model = as_hooked(model)
    config = config or HeadSurveyConfig()
    if model.cfg.family == "vit":
        raise UnsupportedModelError(f"{model.name} is a vision model; the survey reads features by their tokens")
    for hook in saes:
        if not hook.endswith("hook_z"):
            raise ConfigError(f"'{hook}' has no heads to survey; give SAEs on attn.hook_z")
        check_sae(saes[hook], model, hook)
    streams = {hook: FeatureStream(sae.cfg.d_sae, 1, 1, config.seed) for hook, sae in saes.items()}
    together = {hook: Coactivation(sae.cfg.d_sae, data.n_tokens) for hook, sae in saes.items()}
    rules = {
        hook: positions_for(model, config.skip_positions, config.exclude_tokens, sae.cfg) for hook, sae in saes.items()
    }
    readings: dict[str, list[tuple[Tensor, Tensor]]] = {hook: [] for hook in saes}
    seen = 0
    for batch in track(data.batches(config.batch_size), "head survey"):
        cache = model.capture(batch, list(saes))
        for hook, sae in saes.items():
            z = sae.flatten_heads(cache[hook])
            values, indices = sae.encode_sparse(z)
            keep = rules[hook].mask(batch).to(values.device)
            if seen < config.null_tokens:
                readings[hook].append(reading(sae, z[keep], values[keep]))
            streams[hook].add(values, indices, batch, keep)
            together[hook].add(values[keep], indices[keep])
        seen += batch.numel()
    heads: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    for hook in sorted(saes, key=layer_index):
        induction = np.zeros(saes[hook].cfg.d_sae, bool)
        for feature, label in (families or {}).get(hook, {}).items():
            induction[feature] = label == "induction"
        found = _survey_layer(model, hook, saes[hook], streams[hook], together[hook], readings[hook], induction, config)
        for head, rows in found:
            heads.append(head)
            features += rows
    return HeadSurveyResult(heads, features, next(iter(streams.values())).n_tokens if streams else 0, config)


def _survey_layer(
    model: HookedModel,
    hook: str,
    sae: SAE,
    stream: FeatureStream,
    together: Coactivation,
    readings: list[tuple[Tensor, Tensor]],
    induction: np.ndarray,
    config: HeadSurveyConfig,
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    layer, n_heads = layer_index(hook), model.cfg.n_heads
    shares = head_shares(sae.W_dec, n_heads).cpu().numpy()
    slices = sae.W_dec.detach().float().cpu().numpy().reshape(len(shares), n_heads, -1)
    phi = together.phi_matrix()
    alive = np.flatnonzero(stream.count.numpy() >= config.least_active)
    tokens = stream.top_tokens()
    logits = logit_effects(model, sae.W_dec, hook, 5) if model.structure.unembed is not None else None
    generator = np.random.default_rng(config.seed)
    n = min(config.n_features, len(alive))

    def grouped(head: int, chosen: np.ndarray) -> np.ndarray:
        related = _alike(slices[chosen, head], phi[chosen][:, chosen].toarray(), config)
        return groups(related | (induction[chosen, None] & induction[chosen]))

    tops = [alive[np.argsort(-shares[alive, head], kind="stable")[:n]] for head in range(n_heads)] if n else []
    nulls = _null_groups(sae, stream, readings, tops, config) if n else []
    for head, (chosen, null) in enumerate(zip(tops, nulls, strict=True)):
        label = grouped(head, chosen)
        draws = [int(grouped(head, generator.choice(alive, n, replace=False)).max()) + 1 for _ in range(config.n_draws)]
        at = {"layer": layer, "head": head}
        row = at | {
            "n_features": n,
            "n_groups": int(label.max()) + 1,
            "largest_group": int(np.bincount(label).max()),
            **_beside(int(label.max()) + 1, null, config.seed),
            "control_groups": float(np.mean(draws)),
            "control_low": float(np.quantile(draws, 0.025)),
            "control_high": float(np.quantile(draws, 0.975)),
        }
        yield (
            row,
            [
                at
                | {
                    "rank": rank,
                    "feature": int(f),
                    "share": float(shares[f, head]),
                    "group": int(label[rank]),
                    "induction": bool(induction[f]),
                    "density": float(stream.count[f]) / max(1, stream.n_tokens),
                    "top_tokens": " | ".join(model.to_str_tokens([t])[0] for t, _, _ in tokens.get(int(f), [])),
                    "promoted": "" if logits is None else " | ".join(model.to_str_tokens(logits[1][f])),
                }
                for rank, f in enumerate(chosen)
            ],
        )


def _alike(slices: np.ndarray, phi: np.ndarray, config: HeadSurveyConfig) -> np.ndarray:
    """Which of n features belong together by their slices [n, e] or by φ [n, n]: bool [n, n]."""
    unit = slices / np.maximum(np.linalg.norm(slices, axis=1, keepdims=True), 1e-12)
    related: np.ndarray = (unit @ unit.T >= config.min_cosine) | (phi >= config.min_phi)
    return related


def _null_groups(
    sae: SAE,
    stream: FeatureStream,
    readings: list[tuple[Tensor, Tensor]],
    tops: list[np.ndarray],
    config: HeadSurveyConfig,
) -> list[np.ndarray]:
    """Groups of each head's top features in random dictionaries: int [n_dictionaries] a head.

    A random dictionary has, in the place of each of these features, a direction of the same norm in every head's slice,
    active on as large a share of tokens and written as it is read. None of its features is an induction feature.
    """
    x, bar = (torch.cat(part) for part in zip(*readings, strict=True))
    H = len(tops)
    columns = np.unique(np.concatenate(tops))
    place = [np.searchsorted(columns, top) for top in tops]
    norms = encoder_directions(sae)[columns].unflatten(-1, (H, -1)).norm(dim=-1)
    density = stream.count[torch.from_numpy(columns)].double() / max(1, stream.n_tokens)
    n_active = (density * len(x)).round().long().clamp_min(1)
    found = np.zeros((config.n_dictionaries, H), dtype=np.int64)
    for i in range(config.n_dictionaries):
        directions = null_directions(norms, x.shape[1] // H, [config.seed, i])
        margin = directions @ x.T - bar
        active = (margin > offsets(margin, n_active)[:, None]).float()
        slices = directions.unflatten(-1, (H, -1)).numpy()
        for head, mine in enumerate(place):
            phi = np.nan_to_num(torch.corrcoef(active[torch.from_numpy(mine)]).view(len(mine), -1).numpy())
            found[i, head] = groups(_alike(slices[mine, head], phi, config)).max() + 1
    return list(found.T)


def _beside(n_groups: int, null: np.ndarray, seed: int) -> dict[str, Any]:
    """A head's groups beside those of random dictionaries."""
    mean, low, high = (float(v[0]) for v in bootstrap_mean(null[:, None].astype(np.float64), seed=seed))
    null_low, null_high = (float(v) for v in np.quantile(null, (0.025, 0.975)))
    above, below = n_groups - high > null_high - mean, n_groups - low < null_low - mean
    return {
        "polysemantic": bool(above),
        "verdict": "polysemantic" if above else "coherent" if below else "as random",
        "null_groups": mean,
        "null_low": null_low,
        "null_high": null_high,
        "excess": n_groups - mean,
        "excess_low": n_groups - high,
        "excess_high": n_groups - low,
    }

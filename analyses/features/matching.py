"""Two autoencoders on the same hook, feature by feature: which are the same, which split, which are absorbed.

Another seed, width, architecture or library. A pair of features is compared by the cosine of their decoder rows and by the
correlation of their activations on the same tokens. Feature splitting (Bricken et al. 2023): one feature of the narrower
autoencoder is several of the wider, each of which points and fires alike. Absorption (Chanin et al. 2024, arXiv
2409.14507): where a feature is silent although its counterpart fires, because another, more special feature fires instead.
Thresholds are ours.

Two nulls *(ours)*, random directions with the second's head norms and itself shuffled, stand in for the second dictionary
(see `matching_null`): cosines, correlations, splitting and absorption are given for them too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import N_ACTIVE
from attlas.analyses.features.config import MatchingConfig
from attlas.analyses.features.matching_null import Read, null_dictionaries
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae
from attlas.saes.positions import positions_for

# Missed tokens from which a feature can count as absorbed.
LEAST_MISSED = 10
# Prefix of a null's columns → what stands in for the second autoencoder.
NULLS = {"control": "random directions of the same head norms", "shuffled": "the second's rows, entries shuffled"}


def _null_columns(name: str) -> tuple[pa.Field, ...]:
    of = f"with {NULLS[name]}"
    return (
        column(f"{name}_cosine", pa.float64(), "", f"largest cosine {of}"),
        column(f"{name}_mutual", pa.bool_(), "", f"each is the other's best match, {of}"),
        column(f"{name}_correlation", pa.float64(), "", f"Pearson's with its best match, {of}"),
        column(f"{name}_n_split", pa.int32(), "features", f"n_split {of}"),
        column(f"{name}_n_missed", pa.int64(), "tokens", f"n_missed {of}"),
        column(f"{name}_absorbed", pa.float64(), "fraction", f"absorbed {of}"),
    )


MATCHES = TableSchema(
    "sae_matches",
    "one feature of the first autoencoder that is ever active",
    (
        column("feature", pa.int32(), "", "feature of the first autoencoder"),
        column("match", pa.int32(), "", "feature of the second with the largest decoder cosine"),
        column("cosine", pa.float64(), "", "that cosine"),
        column("correlation", pa.float64(), "", "Pearson's, of the two features' activations over tokens"),
        column("mutual", pa.bool_(), "", "each is the other's best match"),
        column("n_split", pa.int32(), "features", "features of the second with a cosine above the split threshold"),
        N_ACTIVE,
        column("n_missed", pa.int64(), "tokens", "of these, tokens on which the match is silent"),
        column("absorbed", pa.float64(), "fraction", "of the missed, tokens with another split feature active instead"),
        *itertools.chain.from_iterable(map(_null_columns, NULLS)),
    ),
)
SCHEMAS = (MATCHES,)


@dataclass(frozen=True)
class MatchingResult(Result):
    """Rows of the table, for features of the first autoencoder that are active on the data."""

    kind: ClassVar[str] = "sae_matching"

    rows: list[dict[str, Any]]
    d_sae: tuple[int, int]
    n_tokens: int
    config: MatchingConfig

    def table(self) -> pa.Table:
        """Table sae_matches."""
        return MATCHES.table(self.rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"sae_matches": self.table()}

    def summary(self) -> dict[str, Any]:
        """Shares of the first's active features that are the same in the second, split, or partly absorbed; nulls beside."""
        return {
            "d_sae": list(self.d_sae),
            "n_tokens": self.n_tokens,
            "n_active_features": len(self.rows),
            **self._shares(),
            **self._beside_nulls(),
        }

    def _beside_nulls(self) -> dict[str, float | None]:
        """The same numbers under each null, and the share of cosines beyond the first one's 95th percentile."""
        found: dict[str, float | None] = {}
        for name in NULLS:
            found |= {f"{key}_{name}": value for key, value in self._shares(f"{name}_").items()}
        control = [r["control_cosine"] for r in self.rows]
        bar = float(np.quantile(control, 0.95)) if control else None
        found["cosine_control_q95"] = bar
        found["beyond_control"] = None if bar is None else float(np.mean([r["cosine"] > bar for r in self.rows]))
        return found

    def _shares(self, prefix: str = "") -> dict[str, float | None]:
        """Shares and means of the columns whose names have a prefix."""
        rows, c = self.rows, self.config
        n = max(1, len(rows))
        return {
            "same": sum(r[f"{prefix}mutual"] and r[f"{prefix}cosine"] >= c.same_cosine for r in rows) / n,
            "split": sum(r[f"{prefix}n_split"] > 1 for r in rows) / n,
            "absorbed": sum(absorbed(r, prefix) for r in rows) / n,
            "mean_cosine": float(np.mean([r[f"{prefix}cosine"] for r in rows])) if rows else None,
            "mean_correlation": float(np.mean([r[f"{prefix}correlation"] for r in rows])) if rows else None,
        }

    def plot(self) -> Any:
        """Decoder cosine of the best match, beside the control's."""
        figure = new_figure()
        figure.add_histogram(x=[r["cosine"] for r in self.rows], name="best match", nbinsx=40)
        figure.add_histogram(x=[r["control_cosine"] for r in self.rows], name="random directions", nbinsx=40)
        figure.update_layout(barmode="overlay", xaxis_title="decoder cosine", yaxis_title="features")
        figure.update_traces(opacity=0.7)
        return figure


def absorbed(row: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether a row counts as absorbed; with "control_" or "shuffled_", in that null."""
    return row[f"{prefix}absorbed"] >= 0.5 and row[f"{prefix}n_missed"] >= LEAST_MISSED


def _best(A: Tensor, B: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row of A with a row of B, and which."""
    parts = [(a @ B.T).max(1) for a in A.split(chunk)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _unit(W: Tensor) -> Tensor:
    return torch.nn.functional.normalize(W.detach().float(), dim=-1)


@torch.no_grad()
def sae_matching(
    model: AnyModel,
    first: SAE,
    second: SAE,
    data: TokenDataset | ImageDataset,
    config: MatchingConfig | None = None,
    *,
    hook: str | None = None,
    track: Track = no_track,
) -> MatchingResult:
    """Match every feature of `first` with one of `second`, on the same activations.

    Held: split pairs (features of the second with a cosine above `split_cosine`), and sums [F] each.

    Raises:
        ConfigError: the two do not sit on the same hook, or differ in width.

    Example:
        >>> from attlas.analyses.features import sae_matching
        >>> result = sae_matching(model, sae, sae, text)
        >>> result.summary()["same"]
        1.0
    """
    model = as_hooked(model)
    config = config or MatchingConfig()
    hook = _shared_hook(model, first, second, hook)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens, first.cfg)

    def pieces() -> Iterator[Tensor]:
        for batch in track(data.batches(config.batch_size), "matching"):
            x = first.flatten_heads(model.capture(batch, hook)[hook])
            yield from x[positions.mask(batch, x.shape[1]).to(x.device)].split(2048)

    read = pieces()
    early, n_early = [], 0  # the nulls' offsets are of these tokens, which are then compared like the rest
    while n_early < config.null_tokens and (piece := next(read, None)) is not None:
        early.append(piece)
        n_early += len(piece)
    sample = Read.of(second, torch.cat(early)[: config.null_tokens])
    nulls = list(null_dictionaries(second, model.cfg.n_heads if hook.endswith("hook_z") else 1, sample, config.seed))
    A = _unit(first.W_dec)
    mine = _Pairing(A, _unit(second.W_dec), config.split_cosine)
    pairs = {null.name: _Pairing(A, _unit(null.W_dec), config.split_cosine) for null in nulls}
    for piece in itertools.chain(early, read):
        f, g = first.encode(piece), Read.of(second, piece)
        mine.add(f, g.features)
        for null in nulls:
            pairs[null.name].add(f, null.encode(g))
    rows = list(_rows(mine, pairs))
    return MatchingResult(rows, (first.cfg.d_sae, second.cfg.d_sae), mine.n, config)


def _shared_hook(model: HookedModel, first: SAE, second: SAE, hook: str | None) -> str:
    """The hook both sit on, having checked that they do."""
    hook = hook or first.cfg.hook_name
    if not hook:
        raise ConfigError("the first SAE does not say which hook it was trained on; give the hook")
    if first.cfg.d_in != second.cfg.d_in:
        raise ConfigError(f"the SAEs have d_in {first.cfg.d_in} and {second.cfg.d_in}; both must sit on the same hook")
    if second.cfg.hook_name and second.cfg.hook_name != hook:
        raise ConfigError(f"the SAEs sit on '{hook}' and '{second.cfg.hook_name}'; both must sit on the same hook")
    for sae in (first, second):
        check_sae(sae, model, hook)
    return hook


class _Pairing:
    """The first's features beside those of one dictionary: best matches by decoder cosine, and what correlations and absorption
    need, added up over tokens.

    Args:
        A, B: unit decoder rows, [F, D] and [G, D].
        split_cosine: from which a row of B is a part of one of A.
    """

    def __init__(self, A: Tensor, B: Tensor, split_cosine: float) -> None:
        self.cosine, self.match = _best(A, B)
        self.mutual = _best(B, A)[1][self.match] == torch.arange(len(A), device=A.device)
        parts = [((a @ B.T) >= split_cosine).nonzero() + torch.tensor([[i * 1024, 0]], device=a.device)
                 for i, a in enumerate(A.split(1024))]  # fmt: skip
        self.split, self.n = torch.cat(parts), 0
        zero = torch.zeros(len(A), dtype=torch.float64, device=A.device)
        self.a, self.aa, self.b, self.bb, self.ab = (zero.clone() for _ in range(5))
        self.active, self.missed, self.instead = (torch.zeros_like(zero, dtype=torch.int64) for _ in range(3))

    def add(self, f: Tensor, g: Tensor) -> None:
        """Activations [N, F] and [N, G] of the same tokens."""
        matched = g[:, self.match]
        fd, gd = f.double(), matched.double()
        self.n += len(f)
        self.a += fd.sum(0)
        self.b += gd.sum(0)
        self.aa += fd.square().sum(0)
        self.bb += gd.square().sum(0)
        self.ab += (fd * gd).sum(0)
        on, silent = f > 0, matched <= 0
        missed = on & silent
        self.active += on.sum(0)
        self.missed += missed.sum(0)
        covered = torch.zeros_like(f)  # tokens on which some split feature of the second is active
        for pairs in self.split.split(4096):
            covered.index_add_(1, pairs[:, 0], (g[:, pairs[:, 1]] > 0).to(f.dtype))
        self.instead += (missed & (covered > 0)).sum(0)

    def correlation(self) -> Tensor:
        """Pearson's, [F]; 0 where one side never moves."""
        n = max(1, self.n)
        cov = self.ab / n - self.a / n * (self.b / n)
        var = (self.aa / n - (self.a / n) ** 2).clamp_min(0) * (self.bb / n - (self.b / n) ** 2).clamp_min(0)
        return torch.where(var > 0, cov / var.clamp_min(1e-30).sqrt(), torch.zeros_like(cov))

    def columns(self) -> dict[str, list[Any]]:
        """A list over the first's features of each number."""
        missed = self.missed.double().clamp_min(1)
        return {
            "cosine": self.cosine.tolist(),
            "correlation": self.correlation().tolist(),
            "mutual": self.mutual.tolist(),
            "n_split": torch.bincount(self.split[:, 0], minlength=len(self.match)).tolist(),
            "n_missed": self.missed.tolist(),
            "absorbed": (self.instead / missed).tolist(),
        }


def _rows(mine: _Pairing, nulls: Mapping[str, _Pairing]) -> Iterator[dict[str, Any]]:
    columns = mine.columns()
    for name, pairing in nulls.items():
        columns |= {f"{name}_{key}": values for key, values in pairing.columns().items()}
    for feature in torch.nonzero(mine.active).flatten().tolist():
        yield {
            "feature": feature,
            "match": int(mine.match[feature]),
            "n_active": int(mine.active[feature]),
            **{key: values[feature] for key, values in columns.items()},
        }

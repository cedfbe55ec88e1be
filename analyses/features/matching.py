"""Two autoencoders on the same hook, feature by feature: which are the same, which split, which are absorbed.

Another seed, width, architecture or library. A pair of features is compared by the cosine of their decoder rows and by the
correlation of their activations on the same tokens. Feature splitting (Bricken et al. 2023): one feature of the narrower
autoencoder is several of the wider, each of which points and fires alike. Absorption (Chanin et al. 2024, arXiv
2409.14507): where a feature is silent although its counterpart fires, because another, more special feature fires instead.
Thresholds are ours.

Two nulls *(ours)* stand in for the second dictionary: random directions with its norms in every head's slice (of hooks
without heads: of its norms), and itself shuffled, the entries of each row at random. What is said of
cosines is given for them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import N_ACTIVE
from attlas.analyses.features.config import MatchingConfig
from attlas.analyses.features.null import null_directions
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

MATCHES = TableSchema(
    "sae_matches",
    "one feature of the first autoencoder that is ever active",
    (
        column("feature", pa.int32(), "", "feature of the first autoencoder"),
        column("match", pa.int32(), "", "feature of the second with the largest decoder cosine"),
        column("cosine", pa.float64(), "", "that cosine"),
        column("correlation", pa.float64(), "", "Pearson's, of the two features' activations over tokens"),
        column("mutual", pa.bool_(), "", "each is the other's best match"),
        column(
            "control_cosine", pa.float64(), "", "largest cosine with as many random directions of the same head norms"
        ),
        column("control_mutual", pa.bool_(), "", "each is the other's best match, of those directions"),
        column("shuffled_cosine", pa.float64(), "", "largest cosine with the second's rows, entries shuffled"),
        column("shuffled_mutual", pa.bool_(), "", "each is the other's best match, of those rows"),
        column("n_split", pa.int32(), "features", "features of the second with a cosine above the split threshold"),
        N_ACTIVE,
        column("n_missed", pa.int64(), "tokens", "of these, tokens on which the match is silent"),
        column("absorbed", pa.float64(), "fraction", "of the missed, tokens with another split feature active instead"),
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
        """Shares of the first's active features that are the same in the second, split, or partly absorbed."""
        n = max(1, len(self.rows))
        c = self.config
        same = sum(r["mutual"] and r["cosine"] >= c.same_cosine for r in self.rows)
        return {
            "d_sae": list(self.d_sae),
            "n_tokens": self.n_tokens,
            "n_active_features": len(self.rows),
            "same": same / n,
            "split": sum(r["n_split"] > 1 for r in self.rows) / n,
            "absorbed": sum(r["absorbed"] >= 0.5 and r["n_missed"] >= 10 for r in self.rows) / n,
            "mean_cosine": float(np.mean([r["cosine"] for r in self.rows])) if self.rows else None,
            **self._nulls(),
            "mean_correlation": float(np.mean([r["correlation"] for r in self.rows])) if self.rows else None,
        }

    def _nulls(self) -> dict[str, float | None]:
        """Share of the same features and mean cosine under each null, and the share beyond the first one's 95th percentile."""
        found: dict[str, float | None] = {}
        for name in ("control", "shuffled"):
            cosines = np.array([r[f"{name}_cosine"] for r in self.rows])
            mutual = np.array([r[f"{name}_mutual"] for r in self.rows], dtype=bool)
            found[f"mean_cosine_{name}"] = float(cosines.mean()) if len(cosines) else None
            found[f"same_{name}"] = float((mutual & (cosines >= self.config.same_cosine)).sum() / max(1, len(cosines)))
        control = [r["control_cosine"] for r in self.rows]
        bar = float(np.quantile(control, 0.95)) if control else None
        found["cosine_control_q95"] = bar
        found["beyond_control"] = None if bar is None else float(np.mean([r["cosine"] > bar for r in self.rows]))
        return found

    def plot(self) -> Any:
        """Decoder cosine of the best match, beside the control's."""
        figure = new_figure()
        figure.add_histogram(x=[r["cosine"] for r in self.rows], name="best match", nbinsx=40)
        figure.add_histogram(x=[r["control_cosine"] for r in self.rows], name="random directions", nbinsx=40)
        figure.update_layout(barmode="overlay", xaxis_title="decoder cosine", yaxis_title="features")
        figure.update_traces(opacity=0.7)
        return figure


def _best(A: Tensor, B: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row of A with a row of B, and which."""
    parts = [(a @ B.T).max(1) for a in A.split(chunk)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _mutual_best(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row of A with a row of B, and whether each is the other's best, [F] both."""
    cosine, match = _best(A, B)
    back = _best(B, A)[1]
    return cosine, back[match] == torch.arange(len(A), device=A.device)


def _null_dictionaries(model: HookedModel, sae: SAE, hook: str, seed: int) -> Iterator[tuple[str, Tensor]]:
    """("control", random directions with the head norms of W_dec) and ("shuffled", W_dec with each row's entries shuffled)."""
    W = sae.W_dec.detach().float().cpu()
    heads = model.cfg.n_heads if hook.endswith("hook_z") else 1
    norms = W.unflatten(-1, (heads, -1)).norm(dim=-1)
    # Not the bare seed: an autoencoder that started from it would find its own first directions here.
    yield "control", null_directions(norms, W.shape[1] // heads, [seed, 0x5EED]).to(sae.W_dec.device)
    generator = np.random.default_rng([seed, 0x5EED, 1])
    yield "shuffled", torch.from_numpy(generator.permuted(W.numpy(), axis=1)).to(sae.W_dec.device)


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
    hook = hook or first.cfg.hook_name
    if not hook:
        raise ConfigError("the first SAE does not say which hook it was trained on; give the hook")
    if first.cfg.d_in != second.cfg.d_in:
        raise ConfigError(f"the SAEs have d_in {first.cfg.d_in} and {second.cfg.d_in}; both must sit on the same hook")
    if second.cfg.hook_name and second.cfg.hook_name != hook:
        raise ConfigError(f"the SAEs sit on '{hook}' and '{second.cfg.hook_name}'; both must sit on the same hook")
    for sae in (first, second):
        check_sae(sae, model, hook)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens, first.cfg)
    A, B = _unit(first.W_dec), _unit(second.W_dec)
    cosine, match = _best(A, B)
    _, back = _best(B, A)
    nulls = {name: _mutual_best(A, _unit(W)) for name, W in _null_dictionaries(model, second, hook, config.seed)}
    parts = [((a @ B.T) >= config.split_cosine).nonzero() + torch.tensor([[i * 1024, 0]], device=a.device)
             for i, a in enumerate(A.split(1024))]  # fmt: skip
    split = torch.cat(parts)
    sums = _Sums(first.cfg.d_sae, match, split)
    for batch in track(data.batches(config.batch_size), "matching"):
        x = first.flatten_heads(model.capture(batch, hook)[hook])
        x = x[positions.mask(batch, x.shape[1]).to(x.device)]
        for piece in x.split(2048):
            sums.add(first.encode(piece), second.encode(piece))
    rows = list(_rows(sums, cosine, match, back, nulls, split))
    return MatchingResult(rows, (first.cfg.d_sae, second.cfg.d_sae), sums.n, config)


class _Sums:
    """What correlations and absorption need, added up over tokens."""

    def __init__(self, d_sae: int, match: Tensor, split: Tensor) -> None:
        self.match, self.split, self.n = match, split, 0
        zero = torch.zeros(d_sae, dtype=torch.float64, device=match.device)
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


def _rows(
    sums: _Sums,
    cosine: Tensor,
    match: Tensor,
    back: Tensor,
    nulls: Mapping[str, tuple[Tensor, Tensor]],
    split: Tensor,
) -> Iterator[dict[str, Any]]:
    correlation = sums.correlation().tolist()
    n_split = torch.bincount(split[:, 0], minlength=len(match)).tolist()
    for feature in torch.nonzero(sums.active).flatten().tolist():
        missed = int(sums.missed[feature])
        yield {
            "feature": feature,
            "match": int(match[feature]),
            "cosine": float(cosine[feature]),
            "correlation": correlation[feature],
            "mutual": int(back[match[feature]]) == feature,
            **{f"{name}_cosine": float(best[feature]) for name, (best, _) in nulls.items()},
            **{f"{name}_mutual": bool(mutual[feature]) for name, (_, mutual) in nulls.items()},
            "n_split": n_split[feature],
            "n_active": int(sums.active[feature]),
            "n_missed": missed,
            "absorbed": float(sums.instead[feature]) / missed if missed else 0.0,
        }

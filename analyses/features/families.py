"""Which family a feature of an attention layer belongs to: only what a direction with the same heads would not show.

Families after the definitions of Kissane et al. 2024 (arXiv 2406.17759); scores, nulls and checks are ours. A label needs

- an excess: the score (see `feature_directions`) is higher than its null's (see `feature_null`), with Benjamini–Hochberg
  at 5 % over features, and is at least the family's floor;
- for induction, specificity: the entropy of the token at the sources is below the null's 5th percentile (*which*
  token comes next), and a cause: with the earlier occurrences replaced the activation falls by more than with as many
  other tokens replaced (see `feature_causal`; lower end of the 95 % interval above 0, paired over examples);
- for local: more activation is kept when all further back is replaced than 95 % of the null keep;
- for long-range: less is kept then than 95 % of the null keep, and no less than the null's median when the last positions
  are shuffled.

Checks run on the features that have the excess alone. With several families the label is the one of the smallest p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attlas.analyses.features.causal import Change, Rerun, Tokens, paired_interval
from attlas.analyses.features.directions import SCORES, Examples, Sample, encoder_directions, feature_examples, sample
from attlas.analyses.features.null import NullConfig, NullScores, benjamini_hochberg, null_scores
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.saes.base import SAE
from attlas.saes.positions import Positions, positions_for

# Least score of a label: a family that makes little of a feature's attribution does not name it.
FLOORS = {"induction": 0.3, "local": 0.6, "long_range": 0.4}
FALSE_DISCOVERIES = 0.05
# Null directions whose kept activation that of local and long-range candidates is set against.
N_KEPT_NULL = 100
CHECKS = (
    "source_entropy",
    "source_entropy_null",
    "fall",
    "fall_low",
    "fall_high",
    "kept_far",
    "kept_far_null",
    "kept_near",
    "kept_near_null",
)
PHRASE = ("phrase", "phrase_null", "phrase_p", "phrase_q")
_NAN = float("nan")


@dataclass(frozen=True)
class FamilyScore:
    """What is known of a feature's families.

    Attributes:
        score, null, p, q: by family: share of attribution, mean of its null, one-sided p, Benjamini–Hochberg q; NaN
            without enough examples.
        label: "induction", "local", "long-range" or "unassigned".
        phrase, phrase_null, phrase_p, phrase_q: share of the examples with the most common token (where it fires, or the
            one after); its null's 95th percentile; p and q.
        source_entropy, source_entropy_null: nats, of the token at the sources; the null's 5th percentile.
        fall, fall_low, fall_high: part of the activation lost with the earlier occurrences replaced, less that lost with
            as many other tokens replaced, with a 95 % interval over examples; NaN where not looked at.
        kept_far, kept_near: part of the activation kept with all but the last 8 positions replaced, and with the 7
            before it shuffled; NaN where not looked at.
        kept_far_null, kept_near_null: medians of the null's.
    """

    score: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, _NAN))
    null: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, _NAN))
    p: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, _NAN))
    q: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, _NAN))
    label: str = "unassigned"
    phrase: float = _NAN
    phrase_null: float = _NAN
    phrase_p: float = _NAN
    phrase_q: float = _NAN
    source_entropy: float = _NAN
    source_entropy_null: float = _NAN
    fall: float = _NAN
    fall_low: float = _NAN
    fall_high: float = _NAN
    kept_far: float = _NAN
    kept_near: float = _NAN
    kept_far_null: float = _NAN
    kept_near_null: float = _NAN

    def row(self) -> dict[str, float | str | None]:
        """Columns of the features table; None for what is not known."""
        row: dict[str, float | str] = {"family": self.label}
        for name in SCORES:
            row[name] = self.score[name]
            row[f"{name}_null"] = self.null[name]
            row[f"{name}_excess"] = self.score[name] - self.null[name]
            row[f"{name}_p"], row[f"{name}_q"] = self.p[name], self.q[name]
        row |= {name: getattr(self, name) for name in (*PHRASE, *CHECKS)}
        return {name: None if value != value else value for name, value in row.items()}


@torch.no_grad()
def families(
    model: HookedModel,
    sae: SAE,
    data: TokenDataset,
    hook: str,
    config: NullConfig,
    *,
    n_scored: int = 32,
    n_causal: int = 8,
    batch_size: int = 16,
    positions: Positions | None = None,
    track: Track = no_track,
) -> dict[int, FamilyScore]:
    """Scores, nulls, checks and label of every feature that is active on the sample.

    Args:
        data: text; its first `config.n_tokens` tokens are used.
        n_scored: strongest examples, one a sequence, that scores are over.
        n_causal: of these the strongest, that changes are run on.
        positions: which count; by default those the autoencoder records.
    """
    positions = positions or positions_for(model, None, None, sae.cfg)
    found = sample(
        model,
        sae,
        data,
        hook,
        n_tokens=config.n_tokens,
        n_top=n_scored,
        batch_size=batch_size,
        positions=positions,
        track=track,
    )
    null = null_scores(model, sae, found, hook, config, n_top=n_scored, batch_size=batch_size, track=track)
    columns = _columns(null)
    excess = {
        name: (columns[f"q_{name}"] <= FALSE_DISCOVERIES) & (null.scores[name] >= FLOORS[name]) for name in SCORES
    }
    rerun = Rerun(model, sae, hook, found, batch_size, config.seed)
    passed = {"induction": _induction(columns, excess["induction"], rerun, n_causal, track)}
    passed |= _reach(columns, excess, rerun, null, n_causal, track)
    p = np.stack([np.where(passed[name], columns[f"p_{name}"], np.inf) for name in SCORES])
    best = np.where(np.isfinite(p.min(0)), p.argmin(0), -1)
    labels = [*(name.replace("_", "-") for name in SCORES), "unassigned"]

    def scored(feature: int) -> FamilyScore:
        known: dict[str, Any] = {
            kind: {name: float(columns[f"{kind}_{name}"][feature]) for name in SCORES}
            for kind in ("score", "null", "p", "q")
        }
        known |= {name: float(columns[name][feature]) for name in (*PHRASE, *CHECKS)}
        return FamilyScore(label=labels[best[feature]], **known)

    return {f: scored(f) for f in torch.nonzero(found.stream.count).flatten().tolist()}


def _columns(null: NullScores) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name in SCORES:
        columns |= {f"score_{name}": null.scores[name], f"null_{name}": null.mean(name), f"p_{name}": null.p(name)}
        columns[f"q_{name}"] = benjamini_hochberg(columns[f"p_{name}"])
    columns["source_entropy"] = null.scores["source_entropy"]
    columns["source_entropy_null"] = null.quantile("source_entropy", 0.05)
    columns |= {"phrase": null.scores["phrase"], "phrase_p": null.p("phrase")}
    columns |= {"phrase_null": null.quantile("phrase", 0.95), "phrase_q": benjamini_hochberg(columns["phrase_p"])}
    nothing = np.full(len(columns["source_entropy"]), np.nan)
    for name in CHECKS[2:]:
        columns[name] = nothing.copy()
    return columns


def _strongest(found: Sample, chosen: np.ndarray, n: int) -> Examples:
    """The n strongest examples of each chosen feature (bool [F])."""
    mine = feature_examples(found.stream)
    return mine.where(torch.from_numpy(chosen)[mine.direction]).strongest(n)


def _induction(
    columns: dict[str, np.ndarray], excess: np.ndarray, rerun: Rerun, n_causal: int, track: Track
) -> np.ndarray:
    """Whether a feature with the excess is specific and causal; fills the falls in."""
    specific = excess & (columns["source_entropy"] < columns["source_entropy_null"])
    examples = _strongest(rerun.found, specific, n_causal)
    if not len(examples):
        return specific
    changes = Tokens(rerun.found.tokens.numpy(), rerun.found.text)
    directions = encoder_directions(rerun.sae)
    broken = rerun.kept(examples, directions, changes.copies, track=track)
    control = rerun.kept(examples, directions, changes.control, n_repeats=2, track=track)
    of = examples.direction.numpy()
    for f in np.flatnonzero(specific):
        interval = paired_interval((control - broken)[of == f])
        columns["fall"][f], columns["fall_low"][f], columns["fall_high"][f] = interval
    passed: np.ndarray = specific & (columns["fall_low"] > 0)
    return passed


def _reach(
    columns: dict[str, np.ndarray],
    excess: dict[str, np.ndarray],
    rerun: Rerun,
    null: NullScores,
    n_causal: int,
    track: Track,
) -> dict[str, np.ndarray]:
    """Whether local and long-range features with the excess keep what they should; fills the kept parts in."""
    chosen = excess["local"] | excess["long_range"]
    passed = {name: np.zeros(len(chosen), dtype=bool) for name in ("local", "long_range")}
    examples = _strongest(rerun.found, chosen, n_causal)
    if not len(examples):
        return passed
    changes = Tokens(rerun.found.tokens.numpy(), rerun.found.text)
    groups = null.profiles.of
    generator = np.random.default_rng(rerun.seed)
    R = null.directions.shape[1]
    drawn = np.unique(np.resize(groups[chosen], N_KEPT_NULL) * R + generator.integers(R, size=N_KEPT_NULL))
    theirs = null.examples.where(torch.from_numpy(np.isin(null.examples.direction.numpy(), drawn)))
    theirs = theirs.strongest(n_causal)  # as many as a feature's: a mean over more would spread less
    kept: dict[str, np.ndarray] = {}
    for name, change in (("far", changes.far), ("near", changes.near)):
        mine = _kept(rerun, examples, encoder_directions(rerun.sae), change, track)
        kept[name] = np.array(list(_kept(rerun, theirs, null.directions.flatten(0, 1), change, track).values()))
        for f, value in mine.items():
            columns[f"kept_{name}"][f] = value
        columns[f"kept_{name}_null"][chosen] = np.median(kept[name])
    far, near = columns["kept_far"], columns["kept_near"]
    passed["local"] = excess["local"] & (far > np.quantile(kept["far"], 0.95))
    passed["long_range"] = (
        excess["long_range"] & (far < np.quantile(kept["far"], 0.05)) & (near >= np.median(kept["near"]))
    )
    return passed


def _kept(rerun: Rerun, examples: Examples, directions: torch.Tensor, change: Change, track: Track) -> dict[int, float]:
    """Mean part kept, by direction."""
    kept = rerun.kept(examples, directions, change, track=track)
    of = examples.direction.numpy()
    return {int(d): float(kept[of == d].mean()) for d in np.unique(of)}

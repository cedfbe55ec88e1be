"""Every head over a whole corpus: scores, an account of its mass, and the sequences that show it at each strength.

HeadVis (Luger, Kamath et al. 2026, transformer-circuits.pub/2026/headvis) shows heads on sequences stratified by their
activation; its six metrics are here by its own definitions. One streaming pass, no T × T map beyond a tile. The account, with
its controls, is *(ours)*.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from attlas.analyses.common.repeats import repeat_scores, repeated_tokens
from attlas.analyses.heads.config import BY, HeadsConfig
from attlas.analyses.heads.controls import random_model, shuffled
from attlas.analyses.heads.gallery import Chosen, Edges, KeptRows, Place, choose_all, read_edges
from attlas.analyses.heads.measure import HeadSums, measure
from attlas.analyses.heads.pass_state import PassState
from attlas.analyses.heads.rules import REST
from attlas.analyses.heads.scatter import scatter, top_heads
from attlas.analyses.heads.tables import (
    HEAD_ACCOUNT,
    HEAD_HISTOGRAMS,
    HEAD_INTERVALS,
    HEAD_SEQUENCES,
    HEAD_TEXTS,
    HEADS,
    N_PARTS,
    SCORES,
)
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.stats import Interval, bootstrap_mean, bootstrap_ratio
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked

# Above, sequences are resampled in so many groups: the interval is that of means of groups, and memory stays bounded.
MOST_UNITS = 1024


@dataclass(frozen=True)
class HeadAtlas(Result):
    """What the passes found.

    Attributes:
        sums: by sequence, [n_sequences, layer, head] each.
        chosen: sequences that show each head; edges: what it attends to there.
        texts: sequence → its tokens; of images empty.
        thumbnails: sequence → uint8 [H, W, 3], of images.
        controls: name ("shuffled", "random", "repeated") → sums of the same account.
        repeat_induction: the score on repeated random tokens [layer, head], as `attlas entropy anatomy` has it.
    """

    kind: ClassVar[str] = "heads"

    sums: HeadSums
    chosen: list[Chosen]
    edges: dict[Place, Edges]
    texts: dict[int, list[str]]
    config: HeadsConfig
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    controls: dict[str, HeadSums] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    repeat_induction: np.ndarray | None = None

    # -- numbers --------------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, np.ndarray]:
        """Every score of table `heads`, float64 [layer, head] each."""
        found = {name: mean for name, (mean, _, _) in self._with_interval.items()}
        total = self.sums.sums["distance_squared"].sum(0) / self.sums.n_queries.sum()
        found["qk_distance_variance"] = np.maximum(total - found["qk_distance"] ** 2, 0)
        found["max_logit"] = self.sums.max_logit
        nothing = np.full(self.sums.max_logit.shape, np.nan)
        found["repeat_induction"] = nothing if self.repeat_induction is None else self.repeat_induction
        return found

    def account(self, sums: HeadSums | None = None, *, repeats: bool = False) -> np.ndarray:
        """Share of the mass by rule, float64 [rule, layer, head], over queries behind the first position; Σ over rules = 1.

        Args:
            repeats: over those alone whose token occurred before; NaN where there are none.
        """
        sums = sums or self.sums
        n, of = int((sums.n_queries - 1).sum()), "rule"
        if repeats:
            n, of = int(sums.n_repeats.sum()), "repeat"
        total = np.stack([sums.sums[f"{of}:{rule}"].sum(0) for rule in sums.rules])
        return total / n if n else np.full_like(total, np.nan if repeats else 0)

    def above_control(self, rule: str, control: str = "shuffled") -> Interval:
        """How much larger a rule's share is than in a control, in pairs of the same sequences.

        Returns: (mean, low, high), float64 [layer, head] each; the interval holds for all heads at once (Bonferroni: 95 %
        that no head of no excess lies above). NaN below 8 sequences.

        Raises:
            ConfigError: there is no such control.
        """
        if control not in self.controls or control == "repeated":
            raise ConfigError(f"control '{control}' was not measured; set n_control, and choose shuffled or random")
        shares = [
            (sums.sums[f"rule:{rule}"] / np.maximum(sums.n_queries - 1, 1)[:, None, None])
            for sums in (self.sums, self.controls[control])
        ]
        n = len(shares[1])
        level = 1 - 0.05 / self.sums.max_logit.size
        return bootstrap_mean(shares[0][:n] - shares[1], n_samples=4000, level=level, seed=self.config.seed)

    def strongest(self, score: str) -> tuple[int, int]:
        """(layer, head) of the largest value."""
        values = self.scores()[score]
        layer, head = np.unravel_index(np.nanargmax(values), values.shape)
        return int(layer), int(head)

    @cached_property
    def _with_interval(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Mean and interval over sequences of each score that is a mean of a per-sequence number."""
        sums, n_all = self.sums.sums, self.sums.n_queries[:, None, None]
        means: dict[str, tuple[np.ndarray, Any]] = {
            "self_attention_score": (sums["self_attention"], n_all),
            "prev_token_score": (sums["previous_token"], n_all - 1),
            "pattern_entropy": (sums["pattern_entropy"], n_all),
            "qk_distance": (sums["distance"], n_all),
            "sink_mass": (sums["sink_mass"], n_all - 1),
            "max_weight": (sums["max_weight"], n_all - 1),
            "active": (sums["active"], n_all - 1),
            "output_ratio": (sums["output_ratio"], n_all - 1),
            "unexplained": (sums[f"rule:{REST}"], n_all - 1),
            "mean_activation": (self.sums.activation["weight"], 1),
            "mean_norm": (self.sums.activation["norm"], 1),
        }
        seed = self.config.seed
        found = {
            name: bootstrap_mean(_units(value / np.maximum(n, 1)), seed=seed) for name, (value, n) in means.items()
        }
        repeats = np.broadcast_to(self.sums.n_repeats[:, None, None], sums["induction"].shape)
        found["induction_score"] = bootstrap_ratio(_units(sums["induction"]), _units(repeats), seed=seed)
        if "CLS" in self.sums.rules:  # the order of patches is no order of positions
            nothing = np.full(self.sums.max_logit.shape, np.nan)
            found |= dict.fromkeys(("prev_token_score", "qk_distance", "induction_score"), (nothing, nothing, nothing))
        return found

    # -- tables -----------------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, pa.Table]:
        return {
            "heads": self.table(),
            "head_intervals": HEAD_INTERVALS.table(self._interval_rows()),
            "head_account": HEAD_ACCOUNT.table(self._account_rows()),
            "head_sequences": HEAD_SEQUENCES.table(self._sequence_rows()),
            "head_texts": HEAD_TEXTS.table([{"sequence": s, "tokens": t} for s, t in sorted(self.texts.items())]),
            "head_histograms": HEAD_HISTOGRAMS.table(self._histogram_rows()),
        }

    def table(self) -> pa.Table:
        """Table heads."""
        scores = self.scores()
        layers, heads = self.sums.max_logit.shape
        flat: dict[str, Any] = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        flat |= {f.name: scores[f.name].ravel() for f in SCORES}
        flat["n_queries"] = np.full(layers * heads, int(self.sums.n_queries.sum()))
        return HEADS.table(flat)

    def _interval_rows(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head, "of": name, "value": mean[layer, head], "low": low[layer, head],
             "high": high[layer, head]}
            for name, (mean, low, high) in self._with_interval.items()
            for layer, head in np.ndindex(mean.shape)
        ]  # fmt: skip

    def _account_rows(self) -> list[dict[str, Any]]:
        share = self.account()
        later = np.maximum(self.sums.n_queries - 1, 1)[:, None, None]
        control = {name: self.account(sums, repeats=name == "repeated") for name, sums in self.controls.items()}
        again = self.account(repeats=True)
        rows = []
        for at, rule in enumerate(self.sums.rules):
            _, low, high = bootstrap_mean(_units(self.sums.sums[f"rule:{rule}"] / later), seed=self.config.seed)
            for layer, head in np.ndindex(share.shape[1:]):
                row = {"layer": layer, "head": head, "rule": rule, "share": share[at, layer, head]}
                row |= {"low": low[layer, head], "high": high[layer, head]}
                row["share_repeats"] = None if np.isnan(again[at, layer, head]) else again[at, layer, head]
                for name in ("repeated", "shuffled", "random"):
                    row[f"share_{name}"] = control[name][at, layer, head] if name in control else None
                rows.append(row)
        return rows

    def _sequence_rows(self) -> list[dict[str, Any]]:
        rows = []
        for c in sorted(self.chosen, key=lambda c: (c.layer, c.head)):
            edges = self.edges[c.layer, c.head, c.sequence]
            rows.append({**dataclasses.asdict(c), "query": edges.query, "key": edges.key, "weight": edges.weight})
        return rows

    def _histogram_rows(self) -> list[dict[str, Any]]:
        part = np.clip((self.sums.activation["weight"] * N_PARTS).astype(int), 0, N_PARTS - 1)
        return [
            {"layer": layer, "head": head, "n_by_activation": np.bincount(part[:, layer, head], minlength=N_PARTS)}
            for layer, head in np.ndindex(part.shape[1:])
        ]

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Of images: thumbnails, and the sequences they are of."""
        if not self.thumbnails:
            return {}
        shown = sorted(self.thumbnails)
        return {"pictures": {"thumbnails": np.stack([self.thumbnails[s] for s in shown]), "images": np.array(shown)}}

    # -- figures ---------------------------------------------------------------------------------------------------------

    def plot(self, x: str = "qk_distance", y: str = "pattern_entropy", colour: str = "unexplained") -> Any:
        """Scatter of all heads by two scores, coloured by a third."""
        return scatter(self._flat_scores(), self._names(), x, y, colour)

    def _names(self) -> list[str]:
        return [f"{layer}.{head}" for layer, head in np.ndindex(self.sums.max_logit.shape)]

    def _flat_scores(self) -> dict[str, np.ndarray]:
        return {name: values.ravel() for name, values in self.scores().items()}

    def summary(self) -> dict[str, Any]:
        """Headline numbers, and the strongest heads."""
        share = self.account()
        found = {
            **self.about,
            "n_sequences": len(self.sums.n_queries),
            "n_queries": int(self.sums.n_queries.sum()),
            "n_heads": int(self.sums.max_logit.size),
            "unexplained": float(share[-1].mean()),
            "account": {rule: float(share[at].mean()) for at, rule in enumerate(self.sums.rules)},
        }
        return found | top_heads(self._flat_scores(), self._names())


def _units(values: np.ndarray) -> np.ndarray:
    """Values [n_sequences, …] as at most MOST_UNITS means over groups of sequences, every so-many-th one."""
    n = len(values)
    if n <= MOST_UNITS:
        return values
    return np.stack([values[at::MOST_UNITS].mean(0) for at in range(MOST_UNITS)])


@torch.no_grad()
def head_atlas(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: HeadsConfig | None = None,
    *,
    checkpoint: Path | None = None,
    track: Track = no_track,
) -> HeadAtlas:
    """Read every head over a corpus.

    Args:
        model: of any supported family.
        data: packed text, or images.
        checkpoint: file that holds the state of the pass, written now and then; when it is there, the pass goes on from it,
            to the same result. Deleted at the end.

    Memory: O(T) a tile, and a few numbers a sequence and head.

    Raises:
        ConfigError: the checkpoint is of another pass.
        UnsupportedModelError: a pruned model that lacks heads.

    Example:
        >>> from attlas.analyses.heads import HeadsConfig, head_atlas
        >>> atlas = head_atlas(model, text, HeadsConfig(n_top=2, n_control=0))
        >>> atlas.scores()["induction_score"].shape  # [layer, head]
        (4, 6)
        >>> bool(abs(atlas.account().sum(0) - 1).max() < 1e-5)  # every weight belongs to one rule
        True
    """
    config, model = config or HeadsConfig(), as_hooked(model)
    state = PassState(checkpoint, f"{model.weight_hash}/{model.dtype}/{data.hash}/{config}")
    rows = KeptRows(config, len(data))
    sums = measure(model, data, config, track, start=state.load(), keep=state.keep, rows=rows)
    chosen = choose_all({by: sums.activation[by] for by in BY}, config)
    chosen += choose_all({REST: sums.rest_share()}, dataclasses.replace(config, n_sampled=0))
    edges = read_edges(model, data, chosen, config, track, rows)
    shown = sorted({c.sequence for c in chosen})
    controls = {}
    if config.n_control:
        few = data.take(config.n_control)
        fresh = random_model(model, config.seed)
        controls["random"] = measure(fresh, few, config, track, title="control: random weights")
        mixed = shuffled(few, model.cfg.patch_size, config.seed)
        controls["shuffled"] = measure(model, mixed, config, track, title="control: shuffled data")
    induction = None
    if isinstance(data, TokenDataset) and config.n_repeats and model.cfg.n_ctx >= 3:
        twice = repeated_tokens(model, n=config.n_repeats, seed=config.seed)
        induction = repeat_scores(model, twice)["induction"]
        said_twice = TokenDataset.from_tokens(twice.cpu(), "repeated")
        controls["repeated"] = measure(model, said_twice, config, track, title="control: repeated tokens")
    texts: dict[int, list[str]]
    thumbnails, about = {}, {}
    if isinstance(data, ImageDataset):
        texts, thumbnails = {s: [] for s in shown}, {s: data.thumbnails[s] for s in shown}
        size = data.pixels.shape[-2:]
        about = {"grid": [side // model.cfg.patch_size for side in size], "n_prefix": model.cfg.n_prefix_tokens}
    elif model.tokenizer is not None:
        texts = {s: model.to_str_tokens(data.tokens[s]) for s in shown}
    else:
        texts = {s: [f"[{i}]" for i in data.tokens[s].tolist()] for s in shown}
    state.delete()
    return HeadAtlas(sums, chosen, edges, texts, config, thumbnails, controls, about, induction)

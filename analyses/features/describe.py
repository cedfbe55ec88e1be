"""What the features of a sparse autoencoder on attention outputs do (Kissane et al. 2024, arXiv 2406.17759).

Two passes over the data: one that counts, and keeps for each feature its strongest sequences and a uniform sample of its
activations; one over the chosen sequences only, for the context and the direct feature attribution of the examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.words import word_index
from attlas.analyses.features.attribution import head_shares, head_spread
from attlas.analyses.features.codes import coded
from attlas.analyses.features.config import FeaturesConfig
from attlas.analyses.features.direction_nulls import DIRECTION_SCORES, DirectionNull, direction_nulls
from attlas.analyses.features.examples import Example, choose, fill, pictures_of, sequences_of, texts_of
from attlas.analyses.features.families import FamilyScore, families
from attlas.analyses.features.logits import logit_effects
from attlas.analyses.features.null import NullConfig
from attlas.analyses.features.pass_state import load_pass, save_pass
from attlas.analyses.features.relations import Coactivation, neighbours, phrases
from attlas.analyses.features.stream import EDGES, N_BINS, FeatureStream
from attlas.analyses.features.tables import (
    COACTIVATION,
    EXAMPLE_WORDS,
    EXAMPLES,
    FEATURE_TEXTS,
    FEATURES,
    HEADS,
    HISTOGRAM,
    LOGITS,
    NEIGHBOURS,
    NGRAMS,
    SCHEMAS,
    TOKENS,
)
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.processes.group import ALONE, Group
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.text import TokenDataset
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import class_names
from attlas.interp.require import patch_grid
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae, fingerprint
from attlas.saes.positions import Positions, positions_for

# Batches between two states of the first pass.
SAVE_EVERY = 50

__all__ = ["SCHEMAS", "FeaturesConfig", "FeaturesResult", "features"]


@dataclass(frozen=True)
class FeaturesResult(Result):
    """Everything known of each feature.

    Attributes:
        stream: counts, histogram and token sums.
        examples: chosen examples with context and attribution.
        families: score of each feature that has attribution.
        shares: float32 [F, heads], or None when the hook has no heads.
        logits: promoted and suppressed values and ids [F, n], or None for a backbone.
        neighbours: decoder cosines and indices of the features that point alike, [F, n_related].
        coactivation: which features fire together.
        nulls: numbers of the decoder rows beside their nulls, by name.
        names: text of token ids or classes.
        n_tokens: tokens read.
        pictures: for images: thumbnails uint8 [m, h, w, 3] of those among the examples, and their numbers int32 [m].
        grid: for images: (rows, columns) of patches; examples' activations hold prefix tokens first.
    """

    kind: ClassVar[str] = "features"

    stream: FeatureStream
    examples: list[Example]
    families: dict[int, FamilyScore]
    shares: Tensor | None
    logits: tuple[Tensor, Tensor, Tensor, Tensor] | None
    neighbours: tuple[Tensor, Tensor]
    coactivation: Coactivation
    nulls: dict[str, DirectionNull]
    names: dict[int, str]
    token_names: dict[int, str]
    top_tokens: dict[int, list[tuple[int, float, int]]]
    config: FeaturesConfig
    pictures: tuple[np.ndarray, np.ndarray] | None = None
    grid: tuple[int, int] | None = None

    @property
    def n_tokens(self) -> int:
        return self.stream.n_tokens

    @property
    def density(self) -> np.ndarray:
        """Share of tokens on which each feature is active, [F]."""
        return self.stream.count.numpy() / max(1, self.n_tokens)

    def tables(self) -> dict[str, pa.Table]:
        """Every table of `analyses/features/tables.py`."""
        return {
            "features": FEATURES.table(list(self._feature_rows())),
            "heads": HEADS.table(self._head_columns()),
            "examples": EXAMPLES.table([self._example_row(e) for e in self.examples]),
            "histogram": HISTOGRAM.table(self._histogram_columns()),
            "logits": LOGITS.table(list(self._logit_rows())),
            "feature_tokens": TOKENS.table(list(self._token_rows())),
            "neighbours": NEIGHBOURS.table(self._neighbour_columns()),
            "coactivation": COACTIVATION.table(list(self.coactivation.strongest(self.config.n_related))),
            "ngrams": NGRAMS.table(list(phrases(self.examples, self.token_names))),
            "example_words": EXAMPLE_WORDS.table(word_index((e.feature, e.tokens) for e in self.examples)),
            "feature_texts": FEATURE_TEXTS.table(texts_of(self.examples, self.token_names)),
        }

    def table(self) -> pa.Table:
        """Table features."""
        return FEATURES.table(list(self._feature_rows()))

    def _feature_rows(self) -> Iterator[dict[str, Any]]:
        count = self.stream.count.numpy()
        mean = self.stream.total.numpy() / np.maximum(count, 1)
        spread = head_spread(self.shares) if self.shares is not None else None
        missing = FamilyScore()
        for feature in range(self.stream.d_sae):
            top = int(self.shares[feature].argmax()) if self.shares is not None else -1
            score = self.families.get(feature, missing)
            yield {
                "feature": feature,
                "density": float(self.density[feature]),
                "n_active": int(count[feature]),
                "mean_act": float(mean[feature]),
                "max_act": float(self.stream.maximum[feature]),
                "top_head": top,
                "top_head_share": float(self.shares[feature, top]) if self.shares is not None else None,
                "head_spread": float(spread[feature]) if spread is not None else None,
                "promoted": self._joined(1, feature),
                "suppressed": self._joined(3, feature),
                "top_tokens": " | ".join(self.token_names[t] for t, _, _ in self.top_tokens.get(feature, [])),
                **self._nulls(feature),
                **score.row(),
            }

    def _nulls(self, feature: int) -> dict[str, float | None]:
        """Columns of the scores of directions; None where not known."""
        row = {}
        for name in DIRECTION_SCORES:
            known = self.nulls.get(name)
            for column, values in (("", "score"), ("_null", "null"), ("_p", "p"), ("_q", "q")):
                value = float("nan") if known is None else float(getattr(known, values)[feature])
                row[name + column] = None if value != value else value
        return row

    def _joined(self, slot: int, feature: int) -> str:
        if self.logits is None:
            return ""
        return " | ".join(self.names[i] for i in self.logits[slot][feature].tolist())

    def _head_columns(self) -> dict[str, Any]:
        if self.shares is None:
            return {"feature": [], "head": [], "share": []}
        F, H = self.shares.shape
        return {
            "feature": np.repeat(np.arange(F), H),
            "head": np.tile(np.arange(H), F),
            "share": self.shares.double().flatten().numpy(),
        }

    def _histogram_columns(self) -> dict[str, Any]:
        counts = self.stream.histogram.view(-1, N_BINS)
        feature, bins = torch.nonzero(counts, as_tuple=True)
        return {
            "feature": feature.numpy(),
            "bin_left": EDGES[bins].double().numpy(),
            "bin_right": EDGES[bins + 1].double().numpy(),
            "count": counts[feature, bins].numpy(),
        }

    def _logit_rows(self) -> Iterator[dict[str, Any]]:
        if self.logits is None:
            return
        up, up_ids, down, down_ids = (t.tolist() for t in self.logits)
        for feature in torch.nonzero(self.stream.count).flatten().tolist():
            for sign, effects, ids in (("promoted", up, up_ids), ("suppressed", down, down_ids)):
                for rank, (effect, i) in enumerate(zip(effects[feature], ids[feature], strict=True)):
                    yield {"feature": feature, "rank": rank, "sign": sign, "token": self.names[i], "effect": effect}

    def _token_rows(self) -> Iterator[dict[str, Any]]:
        for feature, entries in sorted(self.top_tokens.items()):
            for rank, (token, share, n) in enumerate(entries):
                yield {"feature": feature, "rank": rank, "token": self.token_names[token], "share": share, "n": n}

    def _neighbour_columns(self) -> dict[str, Any]:
        cosine, other = self.neighbours
        F, n = other.shape
        return {
            "feature": np.repeat(np.arange(F), n),
            "rank": np.tile(np.arange(n), F),
            "other": other.flatten().numpy(),
            "cosine": cosine.double().flatten().numpy(),
        }

    def _example_row(self, e: Example) -> dict[str, Any]:
        shown = slice(e.start, e.start + len(e.activations))
        return {
            "feature": e.feature,
            "rank": e.rank,
            "stratum": e.stratum,
            "activation": e.activation,
            "sequence": e.sequence,
            "position": e.position,
            "context_start": e.start,
            "tokens": e.tokens,
            "activations": e.activations,
            "dfa_sources": None if e.by_source is None else e.by_source[shown],
            "dfa_outside": None if e.by_source is None else float(e.by_source[: e.start].sum()),
            "dfa_heads": e.by_head,
            "dfa_constant": e.constant,
            "dfa_gate_sources": None if e.gate_by_source is None else e.gate_by_source[shown],
            "dfa_gate_outside": None if e.gate_by_source is None else float(e.gate_by_source[: e.start].sum()),
            "dfa_gate_heads": e.gate_by_head,
            "dfa_gate_constant": e.gate_constant,
        }

    def plot(self) -> Any:
        """Histogram of log10 density over features that are ever active."""
        import plotly.graph_objects as go

        alive = self.density[self.density > 0]
        figure = new_figure(go.Histogram(x=np.log10(alive), nbinsx=60))
        figure.update_layout(xaxis_title="log₁₀ density", yaxis_title="features", title="activation density")
        return figure

    def beyond_null(self) -> dict[str, float | None]:
        """Share of the features with a score whose q is 0.05 or less, by score; None where no feature has one."""
        found = {name: null.share_beyond() for name, null in sorted(self.nulls.items())}
        if self.families:
            q = np.array([score.phrase_q for score in self.families.values()])
            known = q[np.isfinite(q)]
            found["phrase"] = float((known <= 0.05).mean()) if len(known) else None
        return found

    def summary(self) -> dict[str, Any]:
        """Headline numbers: features, dead fraction over the tokens read, families."""
        labels = [score.label for score in self.families.values()]
        return {
            **({"grid": list(self.grid)} if self.grid else {}),
            "n_features": self.stream.d_sae,
            "n_tokens": self.n_tokens,
            "dead_fraction": float((self.stream.count == 0).double().mean()),
            "median_density": float(np.median(self.density)),
            "families": {label: labels.count(label) for label in sorted(set(labels))},
            "beyond_null": self.beyond_null(),
        }

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """For images: thumbnails, and the images they are of."""
        if self.pictures is None:
            return {}
        return {"pictures": {"thumbnails": self.pictures[0], "images": self.pictures[1]}}


@torch.no_grad()
def features(
    model: AnyModel,
    sae: SAE,
    data: TokenDataset | ImageDataset,
    config: FeaturesConfig | None = None,
    *,
    hook: str | None = None,
    checkpoint: Path | None = None,
    track: Track = no_track,
    group: Group = ALONE,
) -> FeaturesResult:
    """Interpret every feature of an SAE.

    Args:
        model: the model the SAE was trained on.
        sae: its features.
        data: held-out text, or images.
        hook: where the SAE sits; default its own record.
        checkpoint: file that holds the state of the first pass, written every `SAVE_EVERY` batches; when it is there,
            the pass goes on from it, to the same result. Deleted at the end.
        group: processes of which the others call `help_features` with the same arguments.

    Memory is that of the stream (see `attlas.analyses.features.stream`), whatever the number of tokens.

    Raises:
        ConfigError: the hook is unknown, or its width is not the SAE's d_in; or the checkpoint is of another pass.

    Example:
        >>> from attlas.analyses.features import FeaturesConfig, features
        >>> small = FeaturesConfig(n_top=2, null_draws=5, n_scored=2, n_causal=1)
        >>> result = features(model, sae, text, small)
        >>> result.density.shape  # [features]
        (32,)
        >>> len(result.tables()["features"]) == sae.cfg.d_sae
        True
    """
    model = as_hooked(model)
    config = config or FeaturesConfig()
    hook = check_sae(sae, model, hook)
    is_text = isinstance(data, TokenDataset)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens, sae.cfg)
    stream = FeatureStream(sae.cfg.d_sae, config.n_top, config.n_sample, config.seed)
    coactivation = Coactivation(sae.cfg.d_sae, config.coactivation_tokens)
    key = ""
    if checkpoint is not None:
        key = f"{model.weight_hash}/{fingerprint(model)}/{sae.hash}/{data.hash}/{hook}/{config}/{positions}"
    done = load_pass(checkpoint, key, stream, coactivation) if checkpoint is not None else 0
    codes = coded(model, sae, data, hook, config.batch_size, group, done)
    batches = -(-len(data) // config.batch_size)
    for n, (batch, (values, indices)) in enumerate(track(codes, "features", batches - done), done + 1):
        keep = positions.mask(batch.inputs, values.shape[1], batch.mask).to(values.device)
        stream.add(values, indices, batch.inputs if is_text else None, keep)
        coactivation.add(values[keep], indices[keep])
        if checkpoint is not None and n % SAVE_EVERY == 0:
            save_pass(checkpoint, key, n, stream, coactivation)
    has_heads = hook.endswith("hook_z")
    examples = choose(stream, config.per_band)
    fill(
        examples,
        model,
        sae,
        data,
        hook=hook,
        context=config.context,
        batch_size=config.batch_size,
        attribute=has_heads,
        track=track,
    )
    logits = logit_effects(model, sae.W_dec, hook, config.n_logits) if model.structure.unembed is not None else None
    top_tokens = stream.top_tokens() if is_text else {}
    ids = set() if logits is None else {int(i) for slot in (1, 3) for i in logits[slot].unique()}
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    null = NullConfig(config.null_draws, n_tokens=config.null_tokens, seed=config.seed) if config.null_draws else None
    spoken = {t for entries in top_tokens.values() for t, _, _ in entries}
    spoken |= {int(t) for ids in sequences_of(examples).values() for t in np.unique(ids)}
    return FeaturesResult(
        stream=stream,
        examples=examples,
        families=_families(model, sae, data, hook, config, null, positions, track) if has_heads and null else {},
        shares=head_shares(sae.W_dec, model.cfg.n_heads).cpu() if has_heads else None,
        logits=logits,
        neighbours=neighbours(sae.W_dec, config.n_related),
        coactivation=coactivation,
        nulls=direction_nulls(model, sae.W_dec, hook, (stream.count > 0).numpy(), null) if null else {},
        names=_names(model, data, ids),
        token_names=_names(model, data, spoken),
        top_tokens=top_tokens,
        config=config,
        pictures=None if isinstance(data, TokenDataset) else pictures_of(examples, data),
        grid=None if isinstance(data, TokenDataset) else patch_grid(model, data.pixels),
    )


def _names(model: HookedModel, data: TokenDataset | ImageDataset, ids: set[int]) -> dict[int, str]:
    if isinstance(data, TokenDataset):
        return {i: model.to_str_tokens([i])[0] if model.tokenizer is not None else str(i) for i in ids}
    classes = class_names(model)
    return {i: classes[i] if classes else str(i) for i in ids}


def _families(
    model: HookedModel,
    sae: SAE,
    data: TokenDataset | ImageDataset,
    hook: str,
    config: FeaturesConfig,
    null: NullConfig,
    positions: Positions,
    track: Track,
) -> dict[int, FamilyScore]:
    if not isinstance(data, TokenDataset) or not model.cfg.causal:
        return {}
    return families(
        model,
        sae,
        data,
        hook,
        null,
        n_scored=config.n_scored,
        n_causal=config.n_causal,
        batch_size=config.batch_size,
        positions=positions,
        track=track,
    )

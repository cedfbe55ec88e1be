"""What a model loses when parts are dropped: sparse features, behaviours on tasks, and what its heads do.

The model with parts dropped is the masked one in memory: what an exported checkpoint computes, before any healing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import (
    CONTEXT_START,
    FEATURE,
    HEAD,
    LAYER,
    N_PROMPTS,
    N_TOKENS,
    SEQUENCE,
    TOKENS_SHOWN,
)
from attlas.analyses.features.examples import Example, fill
from attlas.analyses.pruning.side_effects.behaviours import TASKS, head_losses, task_losses
from attlas.analyses.pruning.side_effects.features import (
    ACTIVITY,
    AFTER,
    BEFORE,
    EFFECT,
    SIZE,
    FeatureTally,
    absent,
    tally,
)
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError, require_counts
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, masked
from attlas.interp.labels import targets_for
from attlas.saes.base import SAE
from attlas.saes.decompose import check_saes
from attlas.saes.positions import positions_for

_F = pa.float64()
_HOOK = column("hook", pa.string(), "", "hook that the autoencoder reads")
FEATURES_LOST = TableSchema(
    "features_lost",
    "one feature of one autoencoder, in the whole model and without the dropped parts",
    (
        _HOOK,
        FEATURE,
        column(
            "state",
            pa.string(),
            "",
            "absent (its module is gone), dead (density falls below a tenth), weaker or stronger (the interval of the "
            "change excludes 0), same, or rare (active on too few tokens to tell)",
        ),
        column("density_before", _F, "fraction", "share of tokens on which it is active, whole model"),
        column("density_after", _F, "fraction", "the same without the dropped parts"),
        column("mean_before", _F, "activation", "mean activation over all tokens, inactive ones as 0"),
        column("mean_after", _F, "activation", "the same without the dropped parts"),
        column("change_low", _F, "activation", "95 % interval of after less before, paired by sequence, lower end"),
        column("change_high", _F, "activation", "95 % interval of after less before, paired by sequence, upper end"),
        column("effect_before", _F, "nats", "first-order rise of a sequence's loss if it were taken out everywhere"),
        column("effect_after", _F, "nats", "the same without the dropped parts"),
        column("size_before", _F, "nats", "sum over tokens of the effect's absolute values"),
        column("size_after", _F, "nats", "the same without the dropped parts"),
        N_TOKENS,
    ),
    only="where autoencoders were given",
)
LOST_EXAMPLES = TableSchema(
    "lost_examples",
    "one example of a feature that loses most",
    (
        _HOOK,
        FEATURE,
        column("place", pa.int16(), "", "place of the feature among those that lose most, from 0"),
        column("rank", pa.int16(), "", "place of the example, the strongest before first"),
        SEQUENCE,
        column("position", pa.int32(), "", "position of the largest activation before"),
        CONTEXT_START,
        TOKENS_SHOWN,
        column("before", pa.list_(pa.float32()), "activation", "on the tokens or patches shown, whole model"),
        column("after", pa.list_(pa.float32()), "activation", "the same without the dropped parts"),
    ),
    only="where autoencoders were given",
)
BEHAVIOURS_LOST = TableSchema(
    "behaviours_lost",
    "one task with known answers",
    (
        column("task", pa.string(), "", "name of the task"),
        column("unit", pa.string(), "", "logits (difference of right and wrong) or probability"),
        column("before", _F, "metric", "mean over prompts, whole model"),
        column("after", _F, "metric", "the same without the dropped parts"),
        column("delta", _F, "metric", "after less before"),
        column("low", _F, "metric", "95 % bootstrap interval of the difference over prompts, lower end"),
        column("high", _F, "metric", "95 % bootstrap interval of the difference over prompts, upper end"),
        column("accuracy_before", _F, "fraction", "prompts on which right beats wrong, whole model"),
        column("accuracy_after", _F, "fraction", "the same without the dropped parts"),
        column("able", pa.bool_(), "", "the whole model is right on 70 % or more: there is something to lose"),
        N_PROMPTS,
    ),
)
_SCORES = {
    "induction": "weight on the token after the earlier copy",
    "previous_token": "weight on the position before",
    "duplicate_token": "weight on the earlier copy",
}
HEADS_LOST = TableSchema(
    "heads_lost",
    "one head, on random tokens repeated once",
    (
        LAYER,
        HEAD,
        column("absent", pa.bool_(), "", "dropped, alone or with its layer; its scores after are 0"),
        *(
            column(f"{name}_{side}", _F, "fraction", f"mean {text}, {when}")
            for name, text in _SCORES.items()
            for side, when in (("before", "whole model"), ("after", "without the dropped parts"))
        ),
    ),
)
SCHEMAS = (FEATURES_LOST, LOST_EXAMPLES, BEHAVIOURS_LOST, HEADS_LOST)


@dataclass(frozen=True)
class SideEffectsConfig:
    """How to look for what is lost.

    Attributes:
        tasks: tasks with known answers.
        n_prompts: prompts of each.
        least_active: tokens on which a feature must be active before to be compared.
        dead_below: a feature is dead when its density falls below this share of what it was.
        n_worst: features of each autoencoder that get examples.
        n_examples: examples of each.
        context: tokens shown before an example's position (a third as many after it).
        batch_size: sequences or images at a time.
        skip_positions: leading positions left out; None as the SAE records it (else BOS of text, nothing of images).
        exclude_tokens: tokens whose positions are left out: bos, eos, pad, sep, token strings or ids; None as recorded.
        seed: of prompts and intervals.
    """

    tasks: tuple[str, ...] = TASKS
    n_prompts: int = 32
    least_active: int = 10
    dead_below: float = 0.1
    n_worst: int = 12
    n_examples: int = 3
    context: int = 24
    batch_size: int = 8
    skip_positions: int | None = None
    exclude_tokens: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, "n_prompts", "least_active", "n_worst", "n_examples", "context", "batch_size")
        if not 0 < self.dead_below < 1:
            raise ConfigError(f"dead_below {self.dead_below} must lie between 0 and 1")


@dataclass(frozen=True)
class SideEffectsResult(Result):
    """What is lost.

    Attributes:
        drop: what was dropped.
        tallies: hook → sums of its autoencoder's features.
        examples: rows of lost_examples.
        behaviours, heads: rows of behaviours_lost and heads_lost.
        refused: task → why it was left out.
    """

    kind: ClassVar[str] = "what_dies"

    drop: Drop
    tallies: dict[str, FeatureTally]
    examples: list[dict[str, Any]]
    behaviours: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    refused: dict[str, str]
    config: SideEffectsConfig

    def states(self, hook: str) -> list[str]:
        """The state of each feature, see the table."""
        if absent(hook, self.drop):
            return ["absent"] * self.tallies[hook].d_sae
        return self.tallies[hook].states(self.config.least_active, self.config.dead_below)

    def features_table(self) -> pa.Table:
        """Table features_lost."""
        parts = []
        for hook, sums in self.tallies.items():
            low, high = sums.change_interval()
            data: dict[str, Any] = {
                "hook": [hook] * sums.d_sae,
                "feature": range(sums.d_sae),
                "state": self.states(hook),
                "change_low": low,
                "change_high": high,
                "n_tokens": [sums.n_tokens] * sums.d_sae,
            }
            for side, when in ((BEFORE, "before"), (AFTER, "after")):
                data[f"density_{when}"] = sums.density(side)
                for quantity, name in ((ACTIVITY, "mean"), (EFFECT, "effect"), (SIZE, "size")):
                    data[f"{name}_{when}"] = sums.mean(side, quantity)
            parts.append(FEATURES_LOST.table(data))
        return pa.concat_tables(parts) if parts else FEATURES_LOST.table([])

    def tables(self) -> dict[str, pa.Table]:
        """The four tables; those of features only where there are autoencoders."""
        found = {"behaviours_lost": BEHAVIOURS_LOST.table(self.behaviours), "heads_lost": HEADS_LOST.table(self.heads)}
        if self.tallies:
            found["features_lost"] = self.features_table()
            found["lost_examples"] = LOST_EXAMPLES.table(self.examples)
        return found

    def plot(self) -> Any:
        """Density of each feature before against after, coloured by state."""
        table = self.features_table().to_pandas()
        figure = new_figure()
        for state, rows in table[table.density_before > 0].groupby("state"):
            figure.add_scattergl(
                x=rows.density_before, y=rows.density_after, mode="markers", name=str(state), text=rows.feature
            )
        figure.update_layout(
            title="features before and after", xaxis_title="density, whole model", yaxis_title="density, pruned"
        )
        figure.update_xaxes(type="log")
        return figure

    def summary(self) -> dict[str, Any]:
        """Features by state, tasks before and after, and the induction head that loses most."""
        found: dict[str, Any] = {"features": {h: dict(Counter(self.states(h))) for h in self.tallies}}
        found["tasks"] = {
            row["task"]: {key: row[key] for key in ("before", "after", "low", "high", "able")}
            for row in self.behaviours
        }
        if self.refused:
            found["tasks_left_out"] = self.refused
        if self.heads:
            most = max(self.heads, key=lambda row: row["induction_before"] - row["induction_after"])
            found["induction_head_lost"] = f"{most['layer']}.{most['head']}"
            found["induction_lost"] = [most["induction_before"], most["induction_after"]]
        return found

    def _recorded_config(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "drop": dataclasses.asdict(self.drop), "hooks": list(self.tallies)}


def drop_side_effects(
    model: AnyModel,
    drop: Drop,
    data: TokenDataset | ImageDataset,
    saes: Mapping[str, SAE] | None = None,
    config: SideEffectsConfig | None = None,
    track: Track = no_track,
) -> SideEffectsResult:
    """Compare the model with itself without the dropped parts.

    Args:
        data: what features are counted on; effects need text, or images with labels and a classifier.
        saes: hook → autoencoder; without any, only behaviours and heads are compared.

    Raises:
        ConfigError: an autoencoder does not fit, or nothing is dropped.
        LayerRangeError: see `Drop.check`.

    Example:
        >>> from attlas.analyses.pruning import Drop, SideEffectsConfig, drop_side_effects
        >>> config = SideEffectsConfig(tasks=("induction",), n_prompts=2, n_worst=1, n_examples=1)
        >>> result = drop_side_effects(model, Drop.parse(("attn:2",)), text, {hook: sae}, config)
        >>> len(result.tables()["features_lost"])  # a row a feature
        32
    """
    model = as_hooked(model)
    config = config or SideEffectsConfig()
    drop.check(model)
    if not drop:
        raise ConfigError("nothing is dropped; name attention, MLP, blocks or heads")
    model.require_text_head("loss to compare")
    checked = check_saes(model, saes or {})
    tallies = {hook: FeatureTally(sae.cfg.d_sae, config.n_examples) for hook, sae in checked.items()}
    rules = {
        hook: positions_for(model, config.skip_positions, config.exclude_tokens, sae.cfg)
        for hook, sae in checked.items()
    }
    targets = targets_for(model, data, warn=bool(checked))
    for batch in track(data.minibatches(config.batch_size) if checked else [], "features"):
        target = None if targets is None else targets[batch.rows].to(model.device)
        tally(model, checked, batch, target, drop, tallies, rules)
    examples = [
        row for hook in checked for row in _examples(model, drop, data, hook, checked[hook], tallies[hook], config)
    ]
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    heads: list[dict[str, Any]] = []
    if isinstance(data, TokenDataset):
        rows, refused = task_losses(model, drop, config.tasks, config.n_prompts, config.seed)
        heads = head_losses(model, drop, config.seed)
    return SideEffectsResult(drop, tallies, examples, rows, heads, refused, config)


def _examples(
    model: HookedModel,
    drop: Drop,
    data: TokenDataset | ImageDataset,
    hook: str,
    sae: SAE,
    sums: FeatureTally,
    config: SideEffectsConfig,
) -> list[dict[str, Any]]:
    """Rows of lost_examples of one autoencoder: where the features that lose most were strongest, before and after."""
    before: list[tuple[int, Example]] = []
    for place, feature in enumerate(sums.worst(config.least_active, config.n_worst)):
        for rank in range(config.n_examples):
            at = (rank, feature)
            if sums.best.sequence[at] >= 0:
                position = int(sums.best.position[at])
                strength, sequence = float(sums.best.value[at]), int(sums.best.sequence[at])
                before.append((place, Example(feature, rank, "top", strength, sequence, position)))
    after = [dataclasses.replace(example) for _, example in before]
    how: dict[str, Any] = {"hook": hook, "context": config.context, "batch_size": config.batch_size}
    fill([example for _, example in before], model, sae, data, attribute=False, **how)
    if not absent(hook, drop):
        with masked(model, drop):
            fill(after, model, sae, data, attribute=False, **how)
    return [
        {
            "hook": hook,
            "feature": one.feature,
            "place": place,
            "rank": one.rank,
            "sequence": one.sequence,
            "position": one.position,
            "context_start": one.start,
            "tokens": one.tokens,
            "before": one.activations,
            "after": two.activations if len(two.activations) else np.zeros_like(one.activations),
        }
        for (place, one), two in zip(before, after, strict=True)
    ]

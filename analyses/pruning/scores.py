"""Scores that rank what to drop, and the loss that dropping cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.losses import Losses, measure_losses
from attlas.analyses.pruning.orders import available, ranked
from attlas.analyses.redundancy.block_runs import AngularOrder
from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.analyses.redundancy.scores import RedundancyConfig, redundancy
from attlas.data.dataset import Dataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, Unit, group_heads, masked


class LossMeter:
    """Measures a model beside the whole one: by its loss, or, where there is none to take, by how far its features turn.

    Features of a vision model are its first token and the mean of its patches, of a text model every token. The distance
    is 1 − cosine to the whole model's, averaged over images or tokens; accuracy is then NaN.

    Attributes:
        kind: LOSS or FEATURES.
        whole: what the whole model has.
    """

    LOSS = "cross-entropy"
    FEATURES = "1 − cosine of features"

    @staticmethod
    def has_loss(model: HookedModel, data: Dataset) -> bool:
        """Whether predictions can be judged: a head, and for images labels."""
        if model.cfg.family == "vit":
            return bool(model.cfg.n_classes) and getattr(data, "labels", None) is not None
        return model.structure.unembed is not None

    def __init__(self, model: HookedModel, data: Dataset, batch_size: int = 8, track: Track = no_track) -> None:
        self.model, self.data, self.batch_size, self.track = model, data, batch_size, track
        self.kind = self.LOSS if self.has_loss(model, data) else self.FEATURES
        self._features = None if self.kind == self.LOSS else self._read(model)
        self.whole = self.measure()

    @torch.no_grad()
    def measure(self, forward: Callable[[Tensor], Tensor] | None = None) -> Losses:
        """Loss in nats or distance, and accuracy, of `forward`, or of the model under its hooks, by sequence or image."""
        if self._features is None:
            return measure_losses(self.model, self.data, self.batch_size, forward, self.track)
        cosine = torch.nn.functional.cosine_similarity(self._features, self._read(forward or self.model), dim=-1)
        turned = 1 - cosine.double().reshape(len(self.data), -1)
        return Losses(turned.mean(1).numpy(), np.full(len(turned), np.nan), turned.shape[1])

    @torch.no_grad()
    def _read(self, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of all data, [rows, width], on the CPU."""
        rows = []
        for batch in self.track(self.data.batches(self.batch_size), "features"):
            hidden = forward(batch).float()
            if self.model.cfg.family == "vit" and hidden.ndim == 3:
                patches = hidden[:, self.model.cfg.n_prefix_tokens :].mean(1)
                hidden = torch.cat([hidden[:, 0], patches], dim=-1)
            rows.append(hidden.flatten(0, -2).cpu())
        return torch.cat(rows)


class Scores:
    """Scores of every unit on calibration data, low = redundant; each pass over the data is made once.

    Attention, MLP and block: 1 − cosine (see redundancy). Heads: Δ loss of ablating them (see head_effects); a group, a kv
    head with the heads that share it, has the sum of theirs. What is silent in the model already has no score.
    """

    def __init__(
        self,
        model: HookedModel,
        calibration: Dataset,
        batch_size: int = 8,
        head_score: str = "zero",
        track: Track = no_track,
    ) -> None:
        self.model, self.calibration = model, calibration
        self.batch_size, self.head_score, self.track = batch_size, head_score, track
        self._modules: dict[Unit, float] | None = None
        self._heads: dict[Unit, float] | None = None

    def of(self, target: str) -> dict[Unit, float]:
        """Scores of a target's units."""
        if target in ("head", "group"):
            self._heads = self._heads or self.measure("head")
            return self._pick(self._heads, target)
        self._modules = self._modules or self.measure("all")
        return self._pick(self._modules, target)

    def measure(self, target: str) -> dict[Unit, float]:
        """Score anew, under whatever hooks are on the model."""
        if target in ("head", "group"):
            config = HeadEffectsConfig((self.head_score,), batch_size=self.batch_size, n_bootstrap=1)
            effects = head_effects(self.model, self.calibration, config, self.track).mean(self.head_score)
            return {("head", i): float(value) for i, value in enumerate(np.ravel(effects))}
        result = redundancy(
            self.model, self.calibration, RedundancyConfig(batch_size=self.batch_size, n_bootstrap=1), self.track
        )
        modules = {"joint": ("attn", "mlp"), "all": ("attn", "mlp", "block")}.get(target, (target,))
        return {(module, layer): score for layer, module, score in result.ranking(modules)}

    def angular(self) -> AngularOrder:
        """Runs of blocks by angular distance, on the same calibration data."""
        config = RedundancyConfig(batch_size=self.batch_size, n_bootstrap=1)
        return AngularOrder(redundancy(self.model, self.calibration, config, self.track).runs)

    def scored(self, target: str) -> dict[Unit, float]:
        """Scores of a target's units, measured anew."""
        return self._pick(self.measure(target), target)

    def _pick(self, found: dict[Unit, float], target: str) -> dict[Unit, float]:
        cfg = self.model.cfg
        if target == "group":
            found = {
                ("group", i): sum(
                    found["head", layer * cfg.n_heads + head]
                    for layer, head in group_heads(i, cfg.n_heads, cfg.n_kv_heads)
                )
                for i in range(cfg.n_layers * cfg.n_kv_heads)
            }
        there = set(available(self.model, target))
        return {unit: score for unit, score in found.items() if unit in there}


def iterative_order(scores: Scores, target: str, n: int) -> dict[Unit, float]:
    """Drop the most redundant, score what is left, and so on (n scoring passes): unit → its score when it was chosen."""
    chosen: dict[Unit, float] = {}
    cfg = scores.model.cfg
    for _ in range(n):
        with masked(scores.model, Drop.of(list(chosen), cfg.n_heads, cfg.n_kv_heads)):
            measured = scores.scored(target)
        unit = next(unit for unit in ranked(measured) if unit not in chosen)
        chosen[unit] = measured[unit]
    return chosen

"""What each attention, MLP and block costs when it alone is dropped: Δ loss, exactly, with the prefix before it shared.

The sum over several modules predicts what dropping them together costs, as far as they do not stand in for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import LAYER, MODULE, MODULES, N_SEQUENCES, interval
from attlas.analyses.common.losses import sequence_loss
from attlas.analyses.redundancy.scores import RedundancyConfig, RedundancyResult
from attlas.data.dataset import Dataset
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean, spearman
from attlas.interp import AnyModel, as_hooked
from attlas.interp.drop import Drop, Unit, masked
from attlas.interp.labels import loss_labels
from attlas.interp.prefix import Prefix

MODULE_EFFECTS = TableSchema(
    "module_effects",
    "one module of one layer, dropped alone",
    (
        LAYER,
        MODULE,
        column("delta", pa.float64(), "nats", "cross-entropy without the module less that of the whole model"),
        *interval("nats", "sequences or images"),
        N_SEQUENCES,
    ),
)
SCHEMAS = (MODULE_EFFECTS,)


@dataclass(frozen=True)
class ModuleEffectsResult(Result):
    """Δ loss of each sequence, float64 [n_sequences, layer, module], modules in the order attn, mlp, block."""

    kind: ClassVar[str] = "module_effects"

    per_sequence: np.ndarray
    config: RedundancyConfig

    @property
    def delta(self) -> np.ndarray:
        """Mean Δ loss [layer, module]."""
        found: np.ndarray = self.per_sequence.mean(0)
        return found

    def of(self, unit: Unit) -> float:
        """Δ loss of a unit such as ("attn", 3)."""
        return float(self.delta[unit[1], MODULES.index(unit[0])])

    def table(self) -> pa.Table:
        """Table module_effects."""
        config = self.config
        mean, low, high = bootstrap_mean(self.per_sequence, seed=config.seed, n_samples=config.n_bootstrap)
        rows = []
        for layer, slot in np.ndindex(*mean.shape):
            row = {"layer": layer, "module": MODULES[slot], "delta": float(mean[layer, slot])}
            interval = {"low": float(low[layer, slot]), "high": float(high[layer, slot])}
            rows.append({**row, **interval, "n_sequences": len(self.per_sequence)})
        return MODULE_EFFECTS.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"module_effects": self.table()}

    def rank_correlation(self, scores: RedundancyResult, module: str) -> float:
        """Spearman's ρ over layers between the redundancy score and what dropping the module costs."""
        slot = MODULES.index(module)
        return float(spearman(scores.scores[:, slot], self.delta[:, slot]))

    def plot(self) -> Any:
        """Δ loss by layer, one line a module."""
        figure = new_figure()
        for slot, module in enumerate(MODULES):
            figure.add_scatter(y=self.delta[:, slot], name=module, mode="lines+markers")
        figure.update_layout(title="dropped alone", xaxis_title="layer", yaxis_title="Δ loss (nats)")
        return figure

    def summary(self) -> dict[str, Any]:
        """The cheapest and the costliest layer of each module."""
        found: dict[str, Any] = {}
        for slot, module in enumerate(MODULES):
            values = self.delta[:, slot]
            found[f"cheapest_{module}"], found[f"costliest_{module}"] = int(values.argmin()), int(values.argmax())
            found[f"cheapest_{module}_delta"] = float(values.min())
        return found


@torch.no_grad()
def module_effects(
    model: AnyModel,
    data: Dataset,
    config: RedundancyConfig | None = None,
    track: Track = no_track,
) -> ModuleEffectsResult:
    """Drop every module alone, sequence by sequence (text: mean next-token loss; images: loss of the true class).

    Raises:
        ConfigError: a vision model without classifier, or images without labels of its classes.

    Example:
        >>> from attlas.analyses.redundancy import module_effects
        >>> result = module_effects(model, text)
        >>> len(result.table())  # layers × (attn, mlp, block)
        12
    """
    model = as_hooked(model)
    config = config or RedundancyConfig()
    labels = loss_labels(model, data)
    parts: list[np.ndarray] = []

    def read(logits: Tensor) -> Tensor:
        return sequence_loss(model, target, logits)

    for batch in track(data.minibatches(config.batch_size, labels), "modules alone"):
        assert batch.targets is not None
        target = batch.targets.to(model.device)
        prefix = Prefix(model, batch.inputs)
        clean = sequence_loss(model, target, prefix.output)
        found = np.zeros((len(batch), model.cfg.n_layers, len(MODULES)))
        for layer in range(model.cfg.n_layers):
            for slot, module in enumerate(MODULES):
                with masked(model, Drop.of([(module, layer)])):
                    loss = prefix.run_from(layer, prefix.residual[layer], read)
                found[:, layer, slot] = (loss[0] - clean).double().cpu().numpy()
        parts.append(found)
    return ModuleEffectsResult(np.concatenate(parts), config)

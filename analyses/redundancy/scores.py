"""Layer redundancy: how little a module turns the residual stream (He et al. 2024, arXiv 2406.15786)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import LAYER, MODULE, MODULES, N_TOKENS, REDUNDANCY, interval
from attlas.analyses.redundancy.block_runs import BLOCK_RUNS, BlockRuns, angles
from attlas.analyses.redundancy.config import RedundancyConfig
from attlas.data.dataset import Dataset, masked_mean
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema
from attlas.data.stats import bootstrap_mean
from attlas.interp import AnyModel, as_hooked
from attlas.interp.names import layer_of

REDUNDANCY = TableSchema(
    "redundancy",
    "one module of one layer",
    (
        LAYER,
        MODULE,
        REDUNDANCY,
        *interval("1 − cosine", "sequences"),
        N_TOKENS,
    ),
)
SCHEMAS = (REDUNDANCY, BLOCK_RUNS)


@dataclass(frozen=True)
class RedundancyResult(Result):
    """Scores with intervals.

    Attributes:
        scores, low, high: float64 [layer, module], modules in the order attn, mlp, block.
        n_tokens: tokens measured.
        runs: runs of blocks by angular distance.
    """

    kind: ClassVar[str] = "redundancy"

    scores: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_tokens: int
    runs: BlockRuns
    config: RedundancyConfig

    def table(self) -> pa.Table:
        """Table redundancy."""
        rows = [
            {
                "layer": layer,
                "module": module,
                "score": float(self.scores[layer, slot]),
                "low": float(self.low[layer, slot]),
                "high": float(self.high[layer, slot]),
                "n_tokens": self.n_tokens,
            }
            for layer in range(self.scores.shape[0])
            for slot, module in enumerate(MODULES)
        ]
        return REDUNDANCY.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"redundancy": self.table(), "block_runs": self.runs.table()}

    def ranking(self, modules: tuple[str, ...] = ("attn", "mlp")) -> list[tuple[int, str, float]]:
        """(layer, module, score), the most redundant first: the joint layer drop's order."""
        found = [
            (layer, module, float(self.scores[layer, MODULES.index(module)]))
            for module in modules
            for layer in range(self.scores.shape[0])
        ]
        return sorted(found, key=lambda entry: entry[2])

    def plot(self) -> Any:
        """Scores by layer, one line a module, with intervals."""
        figure = new_figure()
        for slot, module in enumerate(MODULES):
            y = self.scores[:, slot]
            error = {"type": "data", "array": self.high[:, slot] - y, "arrayminus": y - self.low[:, slot]}
            figure.add_scatter(x=np.arange(len(y)), y=y, error_y=error, name=module, mode="lines+markers")
        figure.update_layout(xaxis_title="layer", yaxis_title="1 − cosine (low = redundant)", title="layer redundancy")
        figure.update_xaxes(dtick=1)
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers: the most redundant attention and MLP layers."""
        found: dict[str, Any] = {"n_tokens": self.n_tokens}
        for module in ("attn", "mlp"):
            layer, _, score = self.ranking((module,))[0]
            found[f"most_redundant_{module}"] = layer
            found[f"most_redundant_{module}_score"] = score
        for length in range(2, min(6, self.scores.shape[0])):
            found[f"best_run_of_{length}"] = self.runs.best(length)
        found["mean_attn"] = float(self.scores[:, 0].mean())
        found["mean_mlp"] = float(self.scores[:, 1].mean())
        return found


def _spans(stream: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Each module's residual stream before and after it; in parallel (Pythia, GPT-J) both start from the block's input."""
    before, after = stream["hook_resid_pre"], stream["hook_resid_post"]
    if "hook_resid_mid" in stream:
        middle = stream["hook_resid_mid"]
        return {"attn": (before, middle), "mlp": (middle, after), "block": (before, after)}
    written = stream["hook_attn_out"]
    return {"attn": (before, before + written), "mlp": (before, after - written), "block": (before, after)}


@torch.no_grad()
def redundancy(
    model: AnyModel,
    data: Dataset,
    config: RedundancyConfig | None = None,
    track: Track = no_track,
) -> RedundancyResult:
    """Score every attention, MLP and block in one pass; cosines in float32, averaged per sequence, then over sequences.

    Example:
        >>> from attlas.analyses.redundancy import redundancy
        >>> result = redundancy(model, text)
        >>> result.scores.shape  # 1 − cosine, [layer, (attn, mlp, block)]
        (4, 3)
        >>> result.ranking()[0][1] in ("attn", "mlp")
        True
    """
    model = as_hooked(model)
    config = config or RedundancyConfig()
    n_layers = model.cfg.n_layers
    per_sequence: list[np.ndarray] = []
    turned: list[np.ndarray] = []
    n_tokens = 0
    token = 0 if model.cfg.family == "vit" else -1
    parallel = "parallel" in model.cfg.traits
    names = ["*.hook_resid_pre", "*.hook_attn_out" if parallel else "*.hook_resid_mid", "*.hook_resid_post"]
    for batch in track(data.minibatches(config.batch_size), "redundancy"):
        cache = model.capture(batch.inputs, names)
        scores = np.empty((len(batch), n_layers, len(MODULES)))
        last = slice(None) if batch.mask is None else torch.arange(len(batch))
        at = token if batch.mask is None else batch.mask.sum(1) - 1
        for layer in range(n_layers):
            spans = _spans({name.split(".")[2]: cache[name].float() for name in cache if layer_of(name) == layer})
            for slot, module in enumerate(MODULES):
                before, after = spans[module]
                cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
                scores[:, layer, slot] = 1 - masked_mean(cosine, batch.mask).cpu().numpy()
        per_sequence.append(scores)
        depths = [cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(n_layers)]
        turned.append(angles([x[last, at] for x in (*depths, cache[f"blocks.{n_layers - 1}.hook_resid_post"])]))
        n_tokens += before.shape[0] * before.shape[1] if batch.mask is None else int(batch.mask.sum())
    mean, low, high = bootstrap_mean(np.concatenate(per_sequence), seed=config.seed, n_samples=config.n_bootstrap)
    runs = BlockRuns.of(np.concatenate(turned), config.seed, config.n_bootstrap)
    return RedundancyResult(mean, low, high, n_tokens, runs, config)

"""What a layer loses when it may attend to sinks and a local window alone (after LongGen and hybrid linear attention).

One layer at a time (and all at once, as layer −1) is limited to the first `sinks` positions and the last `w`, the query's
own among them; the loss is compared with the unlimited model's, sequence by sequence. For vision models the window is a
square of patches up to w − 1 hops away, the sinks are the prefix tokens (CLS, registers), which themselves see everything,
and the loss is the cross-entropy of the true class; that needs a classifier and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.attention.config import WindowConfig
from attlas.analyses.common.columns import interval
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean
from attlas.data.text import TokenDataset
from attlas.errors import UnsupportedModelError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import loss_labels

ALL_LAYERS = -1
_F = pa.float64()
WINDOW_LOSS = TableSchema(
    "window_loss",
    "one layer and one window",
    (
        column("layer", pa.int16(), "", "the limited layer; −1 for all at once"),
        column("window", pa.int32(), "positions", "positions (text) or hops + 1 (images) a query may see"),
        column("sinks", pa.int32(), "positions", "first positions that stay visible"),
        column("delta", _F, "nats", "mean rise of the loss"),
        *interval("nats", "sequences or images"),
        column("loss", _F, "nats", "mean loss with the limit"),
        column("base_loss", _F, "nats", "mean loss without"),
        column("n_units", pa.int64(), "", "sequences or images"),
    ),
)
SCHEMAS = (WINDOW_LOSS,)


@dataclass(frozen=True)
class WindowResult(Result):
    """Per window: rise of the loss [layer + 1] (the last entry is all layers at once), with interval."""

    kind: ClassVar[str] = "window_loss"

    delta: dict[int, np.ndarray]
    low: dict[int, np.ndarray]
    high: dict[int, np.ndarray]
    base_loss: float
    n_units: int
    sinks: int
    config: WindowConfig

    def table(self) -> pa.Table:
        """Table window_loss."""
        rows = []
        for window, delta in self.delta.items():
            for index, value in enumerate(delta):
                rows.append(
                    {
                        "layer": index if index < len(delta) - 1 else ALL_LAYERS,
                        "window": window,
                        "sinks": self.sinks,
                        "delta": float(value),
                        "low": float(self.low[window][index]),
                        "high": float(self.high[window][index]),
                        "loss": self.base_loss + float(value),
                        "base_loss": self.base_loss,
                        "n_units": self.n_units,
                    }
                )
        return WINDOW_LOSS.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"window_loss": self.table()}

    def plot(self) -> Any:
        """Rise of the loss by layer, one line a window."""
        figure = new_figure()
        for window, delta in self.delta.items():
            y = delta[:-1]
            error = {"type": "data", "array": self.high[window][:-1] - y, "arrayminus": y - self.low[window][:-1]}
            figure.add_scatter(x=np.arange(len(y)), y=y, error_y=error, name=f"window {window}", mode="lines+markers")
        return figure.update_layout(
            title=f"loss when one layer sees {self.sinks} sinks and a window",
            xaxis_title="layer",
            yaxis_title="Δ loss, nats",
        )

    def summary(self) -> dict[str, Any]:
        """Of the smallest window: the layer that needs more, how many do not (interval reaches 0.01 nats), all at once."""
        window = min(self.delta)
        delta = self.delta[window]
        return {
            "window": window,
            "base_loss": self.base_loss,
            "most_affected_layer": int(np.argmax(delta[:-1])),
            "most_affected_delta": float(delta[:-1].max()),
            "n_local_layers": int((self.high[window][:-1] < 0.01).sum()),
            "all_layers_delta": float(delta[-1]),
        }


@torch.no_grad()
def window_loss(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: WindowConfig | None = None,
    track: Track = no_track,
) -> WindowResult:
    """Limit each layer in turn, and all at once.

    Raises:
        UnsupportedModelError: a backbone without unembedding or classifier, or images without labels.
        ConfigError: images of classes that the classifier does not know.

    Example:
        >>> from attlas.analyses.attention import WindowConfig, window_loss
        >>> result = window_loss(model, text, WindowConfig(windows=(4,), sinks=1))
        >>> result.delta[4].shape  # nats, [layer + 1]; the last is all layers at once
        (5,)
    """
    model = as_hooked(model)
    config = config or WindowConfig()
    cfg = model.cfg
    model.require_head("loss to compare")
    if isinstance(data, ImageDataset) and data.labels is None:
        raise UnsupportedModelError(
            f"{model.name} with this data has no loss to compare (a language model's head, or a classifier and labels)"
        )
    base = np.concatenate(list(_losses(model, data, config.batch_size)))
    delta, low, high = {}, {}, {}
    jobs = [(w, layer) for w in config.windows for layer in (*range(cfg.n_layers), ALL_LAYERS)]
    found: dict[int, list[np.ndarray]] = {w: [] for w in config.windows}
    for window, layer in track(jobs, "window loss"):
        name = f"blocks.{'*' if layer == ALL_LAYERS else layer}.attn.hook_attn_scores"
        with model.hooks({name: _limit(model, window, config.sinks)}):
            limited = np.concatenate(list(_losses(model, data, config.batch_size)))
        found[window].append(limited - base)
    for window, rises in found.items():
        delta[window], low[window], high[window] = bootstrap_mean(np.stack(rises, axis=1), seed=config.seed)
    sinks = config.sinks if cfg.causal else cfg.n_prefix_tokens
    return WindowResult(delta, low, high, float(base.mean()), len(base), sinks, config)


def _losses(model: HookedModel, data: TokenDataset | ImageDataset, batch_size: int) -> Iterator[np.ndarray]:
    """Loss of each sequence or image, a batch at a time."""
    start = 0
    labels = loss_labels(model, data)
    for batch in data.batches(batch_size):
        if labels is not None:
            target = labels[start : start + len(batch)].to(model.device)
            loss = torch.nn.functional.cross_entropy(model(batch).float(), target, reduction="none")
        else:
            loss = model.cross_entropy(batch).mean(1)
        yield loss.double().cpu().numpy()
        start += len(batch)


def _limit(model: HookedModel, window: int, sinks: int) -> Callable[[Tensor, str], Tensor]:
    def limit(scores: Tensor, _name: str) -> Tensor:
        allowed = allowed_keys(model, scores.shape[-2], window, sinks).to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)

    return limit


def allowed_keys(model: HookedModel, n_tokens: int, window: int, sinks: int) -> Tensor:
    """bool [query, key]: sinks and window (causality is the model's own)."""
    cfg = model.cfg
    at = torch.arange(n_tokens)
    if cfg.causal:
        return ((at[:, None] - at[None]) < window) | (at < sinks)[None]
    n_prefix = cfg.n_prefix_tokens
    if n_tokens - n_prefix != cfg.grid[0] * cfg.grid[1]:
        raise UnsupportedModelError(f"{n_tokens} tokens are not {cfg.grid} patches and {n_prefix} prefix tokens")
    patch = (at - n_prefix).clamp(min=0)
    row, col = patch // cfg.grid[1], patch % cfg.grid[1]
    hops = torch.maximum((row[:, None] - row[None]).abs(), (col[:, None] - col[None]).abs())
    prefix = at < n_prefix
    return (hops < window) | prefix[None] | prefix[:, None]

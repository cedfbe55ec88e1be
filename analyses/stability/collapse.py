"""Entropy collapse in small: a ViT and a byte-level language model at a high learning rate, with and without σReparam.

After Zhai et al. 2023 (arXiv 2303.06296), sections 3.3 and 4, at a size that two cores train in minutes. No warm-up, no
clipping, no weight decay: what a tuned recipe would hide is what is shown. Both arms of a seed see the same initial
weights (up to σReparam's scale), batches and learning rate.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from attlas.analyses.common.columns import ENTROPY, HEAD, LAYER, LOWER_BOUND, NORMALIZED, STEP
from attlas.analyses.stability.alerts import AlertConfig
from attlas.analyses.stability.config import METHODS, CollapseConfig
from attlas.analyses.stability.log import SIGMA_QK, WEIGHT_BOUND
from attlas.analyses.stability.reparam import sigma_reparam
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.data.figures import LIGHT, new_grid
from attlas.data.images.dataset import load_images
from attlas.data.images.processor import ImageSpec
from attlas.data.models_catalog import resolve_model
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.text import read_documents
from attlas.data.workspace import Ref
from attlas.interp.families import describe

_F = pa.float64()
_ARM = (
    column("model", pa.string(), "", "vit (glyphs) or lm (bytes of the embedded text)"),
    column("method", pa.string(), "", "baseline or sigma_reparam"),
    column("seed", pa.int32(), "", "seed of weights and batches"),
)
COLLAPSE = TableSchema(
    "collapse",
    "one head at one check of one training",
    (
        *_ARM,
        STEP,
        LAYER,
        HEAD,
        ENTROPY,
        NORMALIZED,
        LOWER_BOUND,
        WEIGHT_BOUND,
        SIGMA_QK,
        column("loss", _F, "nats", "mean training loss over the steps since the last check"),
    ),
)
COLLAPSE_RUNS = TableSchema(
    "collapse_runs",
    "one training",
    (
        *_ARM,
        column("first_loss", _F, "nats", "loss of the first step"),
        column("final_loss", _F, "nats", "mean training loss over the last 50 steps"),
        column("final_normalized", _F, "fraction", "mean normalised entropy over heads, last check"),
        column("lowest_normalized", _F, "fraction", "lowest of a head's, over all checks"),
        column("collapsed_heads", pa.int32(), "heads", "heads with a collapse alert at any time"),
        column("first_collapse", pa.int64(), "steps", "step at which the first of them began; null without"),
        column("diverged", pa.bool_(), "", "loss not finite, or at its end above its start"),
        column("seconds", _F, "s", "wall time"),
    ),
)
SCHEMAS = (COLLAPSE, COLLAPSE_RUNS)


@dataclass(frozen=True)
class CollapseResult(Result):
    """Tables collapse and collapse_runs."""

    kind: ClassVar[str] = "collapse"

    curves: pa.Table
    runs: pa.Table
    config: CollapseConfig

    def tables(self) -> dict[str, pa.Table]:
        return {"collapse": self.curves, "collapse_runs": self.runs}

    def table(self) -> pa.Table:
        return self.runs

    def summary(self) -> dict[str, Any]:
        """Per model and method, means over seeds."""
        frame = self.runs.to_pandas()
        found: dict[str, Any] = {"n_seeds": len(self.config.seeds)}
        for (model, method), group in frame.groupby(["model", "method"]):
            found[f"{model}_{method}_final_loss"] = float(group.final_loss.mean())
            found[f"{model}_{method}_final_normalized"] = float(group.final_normalized.mean())
            found[f"{model}_{method}_collapsed_heads"] = float(group.collapsed_heads.mean())
        return found

    def plot(self, model: str | None = None) -> Any:
        """Loss above, mean entropy of all heads with its bound below; one colour a method, one line a seed."""
        import plotly.graph_objects as go

        model = model or self.config.models[0]
        frame = self.curves.to_pandas()
        frame = frame[frame.model == model]
        figure = new_grid(rows=2, columns=1, shared_xaxes=True, vertical_spacing=0.06)
        for method, colour in zip(METHODS, (LIGHT.second, LIGHT.accent), strict=True):
            for seed in self.config.seeds:
                part = frame[(frame.method == method) & (frame.seed == seed)]
                mean = part.groupby("step")[["loss", "entropy", "lower_bound"]].mean()
                shared = {"x": mean.index, "legendgroup": method, "line": {"color": colour}, "mode": "lines"}
                first = seed == self.config.seeds[0]
                figure.add_trace(go.Scatter(y=mean.loss, name=method, showlegend=first, **shared), row=1, col=1)
                figure.add_trace(go.Scatter(y=mean.entropy, showlegend=False, name=method, **shared), row=2, col=1)
                shared["line"] = {"color": colour, "dash": "dot", "width": 1}
                figure.add_trace(
                    go.Scatter(y=mean.lower_bound, name=f"{method}: bound", showlegend=first, **shared), row=2, col=1
                )
        figure.update_yaxes(title_text="training loss, nats", row=1)
        figure.update_yaxes(title_text="entropy, nats", row=2)
        figure.update_xaxes(title_text="step", row=2)
        return figure.update_layout(title=f"entropy collapse ({model})")

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return Ref("collapse-demo", "0" * 16), None


def collapse_demo(config: CollapseConfig | None = None, track: Track = no_track) -> CollapseResult:
    """Train every model, seed and method.

    Example:
        >>> from attlas.analyses.stability import CollapseConfig, collapse_demo
        >>> result = collapse_demo(CollapseConfig(models=("vit",), seeds=(0,), vit_steps=1, every=1))
        >>> sorted(result.tables())
        ['collapse', 'collapse_runs']
    """
    config = config or CollapseConfig()
    arms = [(m, seed, method) for m in config.models for seed in config.seeds for method in config.methods]
    data = {name: _images() if name == "vit" else _bytes() for name in config.models}
    curves, runs = [], []
    for name, seed, method in track(arms, "training"):
        curve, run = _train(name, seed, method, data[name], config)
        curves.append(curve)
        runs.append(run)
    return CollapseResult(pa.concat_tables(curves), COLLAPSE_RUNS.table(runs), config)


def _images() -> tuple[Tensor, Tensor]:
    """The embedded glyphs, [n, 1, 32, 32] with labels: a training set here, since only training loss is looked at."""
    glyphs = load_images("embedded:glyphs", ImageSpec.from_folder(resolve_model("vit-mini").folder))
    assert glyphs.labels is not None
    return glyphs.pixels, glyphs.labels


def _bytes(n: int = 500_000, length: int = 50) -> tuple[Tensor, Tensor]:
    """Bytes of the embedded text as [n / length, length], twice (inputs are their own labels)."""
    raw = bytearray()
    for text in read_documents("embedded:train"):
        raw += str(text).encode() + b"\n"
        if len(raw) >= n:
            break
    rows = torch.tensor(list(raw[:n]), dtype=torch.long).view(-1, length)
    return rows, rows


def _build_vit() -> Any:
    import transformers

    config: Any = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = 36
    return transformers.ViTForImageClassification(config)


def _build_lm() -> Any:
    import transformers

    config: Any = transformers.GPT2Config(
        vocab_size=256, n_positions=50, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _build(name: str, gain: float) -> nn.Module:
    """A fresh model of 2 layers × 4 heads, d_model 48; 17 image tokens, or 50 bytes."""
    model = _build_vit() if name == "vit" else _build_lm()
    with torch.no_grad():
        for layer in describe(model).layers:
            if layer.fused is not None:
                layer.q.weight[:, : 2 * 48] *= gain  # type: ignore[operator,index]
            else:
                layer.q.weight.mul_(gain)  # type: ignore[operator]
                layer.k.weight.mul_(gain)  # type: ignore[operator]
    return model.train()


def _train(
    name: str, seed: int, method: str, data: tuple[Tensor, Tensor], config: CollapseConfig
) -> tuple[pa.Table, dict[str, Any]]:
    """One training; (rows of collapse, row of collapse_runs)."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model: Any = _build(name, config.qk_gain)
    if method == "sigma_reparam":
        sigma_reparam(model)
    steps, lr = (config.vit_steps, config.vit_lr) if name == "vit" else (config.lm_steps, config.lm_lr)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    batch_size, key = (32, "pixel_values") if name == "vit" else (16, "input_ids")
    inputs, labels = data
    losses: list[float] = []
    quiet = logging.getLogger("attlas.tracker")
    level, quiet.level = quiet.level, logging.ERROR  # alerts are this demonstration's result, not its news
    try:
        with EntropyTracker(model, every=config.every, alerts=AlertConfig(patience=2)) as tracker:
            for _ in range(steps):
                rows = torch.randint(0, len(inputs), (batch_size,), generator=generator)
                loss = model(**{key: inputs[rows]}, labels=labels[rows]).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                tracker.step()
    finally:
        quiet.level = level
    arm = {"model": name, "method": method, "seed": seed}
    frame = tracker.table().to_pandas()
    columns: dict[str, Any] = {f.name: frame[f.name].to_numpy() for f in COLLAPSE.columns if f.name in frame}
    columns |= {key: [value] * len(frame) for key, value in arm.items()}
    since = [losses[max(0, s - config.every + 1) : s + 1] for s in frame.step]
    columns["loss"] = [float(np.mean(part)) for part in since]
    began = [a.since for a in tracker.alerts if a.kind == "collapse" and a.began]
    final = float(np.mean(losses[-50:]))
    run = {
        **arm,
        "first_loss": losses[0],
        "final_loss": final,
        "final_normalized": float(frame.normalized[frame.step == frame.step.max()].mean()),
        "lowest_normalized": float(frame.normalized.min()),
        "collapsed_heads": len({(a.layer, a.head) for a in tracker.alerts if a.kind == "collapse"}),
        "first_collapse": min(began, default=None),
        "diverged": not np.isfinite(final) or final > losses[0],
        "seconds": time.perf_counter() - start,
    }
    return COLLAPSE.table(columns), run

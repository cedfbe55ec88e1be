"""What attention and the feed-forward network cost per layer, against sequence length (after RePaViT, FlashAttention-2).

Each sub-layer is run by itself on random hidden states, so that lengths beyond the context window can be timed too. Next
to seconds stand the operations and the least traffic of the arithmetic:

- FLOPs of projections: 2·T per weight. FLOPs of mixing (attention): 4·T²·H·e, halved for causal models; with a
  sliding window, 4·H·e for each pair of positions that it lets through.
- bytes: weights once, input and output once, and for attention q, k, v and z written and read once. No T × T traffic, as
  with a fused kernel.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from attlas.analyses.attention.config import CostConfig
from attlas.analyses.common.columns import LAYER
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.structure import LayerModules

_F = pa.float64()
COST = TableSchema(
    "cost",
    "one sub-layer at one length",
    (
        LAYER,
        column("module", pa.string(), "", "attn or mlp, without the norm in front"),
        column("seq_len", pa.int64(), "tokens", "T"),
        column("batch_size", pa.int32(), "", "sequences"),
        column("seconds", _F, "s", "median wall time of a forward pass"),
        column("low", _F, "s", "first quartile"),
        column("high", _F, "s", "third quartile"),
        column("flops_projection", _F, "FLOP", "2·T per weight and sequence"),
        column(
            "flops_mixing",
            _F,
            "FLOP",
            "4·T²·heads·d_head a sequence (half when causal, less in windows); 0 for mlp",
        ),
        column("bytes", _F, "B", "weights, input, output, q, k, v and z, each moved once"),
    ),
)
SCHEMAS = (COST,)


@dataclass(frozen=True)
class CostResult(Result):
    """Rows of table cost."""

    kind: ClassVar[str] = "cost"

    rows: list[dict[str, Any]]
    device: str
    threads: int
    config: CostConfig

    def table(self) -> pa.Table:
        return COST.table(self.rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"cost": self.table()}

    def share(self) -> dict[int, float]:
        """Attention's share of the time of attention + FFN, by length."""
        found = {}
        for length in self.config.lengths:
            time_of = {m: sum(r["seconds"] for r in self._of(m, length)) for m in ("attn", "mlp")}
            found[length] = time_of["attn"] / (time_of["attn"] + time_of["mlp"])
        return found

    def _of(self, module: str, length: int) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["module"] == module and r["seq_len"] == length]

    def plot(self) -> Any:
        """Milliseconds a layer (median over layers) against T, attention beside FFN, both axes logarithmic."""
        figure = new_figure()
        for module in ("attn", "mlp"):
            y = [1e3 * float(np.median([r["seconds"] for r in self._of(module, t)])) for t in self.config.lengths]
            figure.add_scatter(x=self.config.lengths, y=y, name=module, mode="lines+markers")
        figure.update_layout(title=f"time a layer ({self.device})", xaxis_title="tokens", yaxis_title="ms")
        return figure.update_xaxes(type="log").update_yaxes(type="log")

    def summary(self) -> dict[str, Any]:
        """Attention's share by length, and the first length at which it takes more than the FFN."""
        share = self.share()
        more = [length for length, value in share.items() if value > 0.5]
        return {
            "device": self.device,
            "threads": self.threads,
            "attention_share": {str(k): v for k, v in share.items()},
            "attention_dominates_from": min(more, default=None),
        }


@torch.no_grad()
def cost_profile(model: AnyModel, config: CostConfig | None = None, track: Track = no_track) -> CostResult:
    """Time attention and FFN of every layer at every length.

    Example:
        >>> from attlas.analyses.attention import CostConfig, cost_profile
        >>> result = cost_profile(model, CostConfig(lengths=(16, 32), repeats=1))
        >>> len(result.tables()["cost"])  # layers × (attn, mlp) × lengths
        16
    """
    model = as_hooked(model)
    config = config or CostConfig()
    cfg = model.cfg
    model.require_plain("the cost profile", "experts")
    layers = range(min(config.n_layers, cfg.n_layers) or cfg.n_layers)
    cuda = model.device.type == "cuda"
    generator = torch.Generator().manual_seed(config.seed)
    rows = []
    for length in track(config.lengths, "cost profile"):
        x = torch.randn(config.batch_size, length, cfg.d_model, generator=generator).to(model.device, model.dtype)
        calls: dict[tuple[int, str], Callable[[], Any]] = {}
        for layer in layers:
            parts = model.layers[layer]
            calls[layer, "attn"] = _attention_call(model, parts, x)
            calls[layer, "mlp"] = functools.partial(parts.mlp, x)
        times: dict[tuple[int, str], list[float]] = {key: [] for key in calls}
        for repeat in range(config.repeats + 1):
            for key, call in calls.items():
                seconds = _timed(call, cuda)
                if repeat:  # the first is warm-up
                    times[key].append(seconds)
        for (layer, module), found in times.items():
            ordered = sorted(found)
            row = {"layer": layer, "module": module, "seq_len": length, "batch_size": config.batch_size}
            row |= {"seconds": statistics.median(found), "low": ordered[len(found) // 4]}
            row |= {"high": ordered[-1 - len(found) // 4]}
            rows.append(row | _arithmetic(model, model.layers[layer], module, length, config.batch_size))
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return CostResult(rows, device, torch.get_num_threads(), config)


def _attention_call(model: HookedModel, parts: LayerModules, x: Tensor) -> Callable[[], Any]:
    """The attention module on hidden states x; Llama's wants its rotation, which is made outside the timing."""
    attn: Any = parts.attn
    if model.structure.rotary is None:
        return lambda: attn(x)
    turn: Any = next(m for name, m in model.hf.named_modules() if name.endswith("rotary_emb"))
    positions = torch.arange(x.shape[1], device=x.device)[None]
    kind = getattr(attn, "layer_type", getattr(attn, "attention_type", None))  # Gemma 3, OLMo 3: a rotation a kind
    by_kind = {"layer_type": kind} if isinstance(getattr(turn, "rope_type", ""), dict) else {}
    rotation = turn(x, positions, **by_kind)
    return lambda: attn(hidden_states=x, position_embeddings=rotation, attention_mask=None)


def _timed(call: Callable[[], Any], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _arithmetic(model: HookedModel, parts: LayerModules, module: str, length: int, batch: int) -> dict[str, float]:
    cfg = model.cfg
    size = torch.finfo(model.dtype).bits // 8
    modules: list[nn.Module] = [parts.mlp]
    mixing, kept = 0.0, 0
    if module == "attn":
        modules = list({id(m): m for m in (parts.q, parts.k, parts.v, parts.out_proj)}.values())
        pairs = length**2 * (0.5 if cfg.causal else 1)
        if parts.rule.sliding_window is not None:
            pairs = float(parts.rule.n_queries(length).sum())
        mixing = batch * 4 * pairs * cfg.n_heads * cfg.d_head
        kept = 2 * (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head  # q, z and k, v: written and read
    weights = sum(p.numel() for m in modules for p in m.parameters() if p.ndim == 2)
    return {
        "flops_projection": 2.0 * batch * length * weights,
        "flops_mixing": mixing,
        "bytes": float(size * (weights + batch * length * (2 * cfg.d_model + kept))),
    }

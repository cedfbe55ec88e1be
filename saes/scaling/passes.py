"""What one pass over text takes, before anything is loaded: activations to disk, or every head's attention statistics.

The model's sizes and the GPUs' rates are those of a training's plan (`attlas.saes.scaling.plan`); nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attlas.errors import ConfigError
from attlas.saes.scaling.costs import MATRIX, MOVED
from attlas.saes.scaling.devices import Device, device_named
from attlas.saes.scaling.plan import BYTES, SPARE
from attlas.saes.scaling.shapes import ModelShape, depth, model_shape

STATISTICS = 16
"""Float32 numbers kept of a query of a head while statistics are made (entropy, its bound, masses, the largest weight …)."""


@dataclass(frozen=True)
class PassPlan:
    """A pass in numbers; every figure is computed, none measured.

    Attributes:
        device: the GPU planned for.
        model: its sizes.
        what: of the pass, in words.
        n_layers: layers that run.
        memory: held at the peak, part → bytes.
        disk: bytes written.
        flops: operations of the whole pass.
        n_tokens: of the pass.
        seconds: of the whole pass, part → seconds.
        limit: bytes that may be used of the GPU's memory.
    """

    device: Device
    model: ModelShape
    what: str
    n_layers: int
    memory: dict[str, float]
    disk: float
    flops: float
    n_tokens: int
    seconds: dict[str, float]
    limit: float

    @property
    def peak(self) -> float:
        """Bytes of memory."""
        return sum(self.memory.values())

    @property
    def advice(self) -> str | None:
        """What would make it fit, or None."""
        if self.peak <= self.limit:
            return None
        if self.memory["weights"] > self.limit:
            return "open the model in bfloat16 (--dtype), or over several GPUs (--device-map auto)"
        return "lower --batch-size or --seq-len" if self.memory["weights"] < self.limit else None

    def rows(self) -> list[tuple[str, str]]:
        """(what, value), for reading."""
        shape = self.model
        return [
            ("pass", f"{self.what}; {self.n_layers} of {shape.n_layers} layers run"),
            ("model", f"{shape.name}: {shape.parameters:,} parameters, {shape.layer_parameters:,} a layer"),
            *((f"memory: {part}", f"{size / 1e9:,.2f} GB") for part, size in self.memory.items()),
            ("memory: peak", f"{self.peak / 1e9:,.2f} GB of {self.limit / 1e9:,.1f} GB ({self.device.name})"),
            ("written", f"{self.disk / 1e9:,.2f} GB"),
            ("operations", f"{self.flops / 1e12:,.2f} TFLOP for {self.n_tokens:,} tokens"),
            ("hours (rates assumed)", f"{sum(self.seconds.values()) / 3600:,.3f}"),
        ]

    def summary(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "device": self.device.name,
            "model": self.model.name,
            "layers": self.n_layers,
            "memory": self.memory,
            "peak": self.peak,
            "limit": self.limit,
            "disk": self.disk,
            "flops": self.flops,
            "seconds": self.seconds,
            "fits": self.advice is None,
            "basis": "computed",
        }


def plan_pass(
    model: str,
    *,
    hooks: Sequence[str] | None,
    n_tokens: int,
    seq_len: int,
    batch: int,
    dtype: str = "float32",
    store_dtype: str = "bfloat16",
    device: str = "h100",
    memory: float | None = None,
) -> PassPlan:
    """What a pass will take.

    Args:
        model: looked up by its config.json or among the published sizes, not opened.
        hooks: whose activations go to disk; None for the statistics of every head's attention.
        n_tokens, seq_len, batch: of the pass; batch is sequences at a time.
        dtype: of weights and activations; store_dtype: of what is written.
        device: a GPU by name; memory: its bytes, in place of the named one's.

    Raises:
        ConfigError: sizes are not positive, or the GPU, the model or a type is unknown.
        HookNameError: a hook matches nothing.

    Example:
        >>> from attlas.saes.scaling.passes import plan_pass
        >>> z = ("blocks.*.attn.hook_z",)
        >>> found = plan_pass("llama-3.1-8b", hooks=z, n_tokens=1_000_000, seq_len=1024, batch=8, dtype="bfloat16")
        >>> f"{found.memory['weights'] / 1e9:.1f} GB of weights, {found.disk / 1e9:.1f} GB written"
        '16.1 GB of weights, 262.1 GB written'
    """
    if min(n_tokens, seq_len, batch) < 1:
        raise ConfigError(f"n_tokens {n_tokens}, seq_len {seq_len} and batch size {batch} must be 1 or more")
    for name in (dtype, store_dtype):
        if name not in BYTES:
            raise ConfigError(f"dtype '{name}' is not one of {', '.join(BYTES)}")
    shape, gpu, row = model_shape(model), device_named(device), BYTES[dtype]
    tokens = min(batch * seq_len, n_tokens)
    widths = {} if hooks is None else {hook: shape.width(hook) for hook in shape.hooks(tuple(hooks))}
    n_layers = shape.n_layers if hooks is None else max(map(depth, widths))
    heads = (2 * shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    held: dict[str, float] = {
        "weights": shape.parameters * row,
        "forward pass": tokens * row * (6 * shape.d_model + 3 * shape.d_mlp + heads),
        "activations": tokens * row * sum(widths.values()),
    }
    if hooks is None:  # queries, keys and values of one layer at a time, and what is kept of its queries
        held["activations"] = tokens * (row * heads + 4 * STATISTICS * shape.n_heads)
    flops = n_tokens * shape.flops(n_layers, seq_len)
    if hooks is None:  # q·k once more, and as many operations on the weights
        flops += n_tokens * n_layers * 2.0 * seq_len * shape.n_heads * shape.d_head
    disk = n_tokens * BYTES[store_dtype] * float(sum(widths.values()))
    rate = {2: gpu.bfloat16, 4: gpu.float32}.get(row, gpu.float32 / 2)
    seconds = {"arithmetic": flops / (MATRIX * rate), "memory": disk / (MOVED * gpu.bandwidth)}
    what = "statistics of every head" if hooks is None else f"activations of {len(widths)} hooks"
    limit = (memory or gpu.memory) * (1 - SPARE)
    return PassPlan(gpu, shape, what, n_layers, held, disk, flops, n_tokens, seconds, limit)

"""What a training configuration will take on given GPUs, before anything is loaded: `plan(config)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attlas.errors import ConfigError
from attlas.saes.scaling.costs import LINKED, MATRIX, MOVED, Costs, buffer_bytes, sae_costs
from attlas.saes.scaling.devices import BETWEEN, MACHINE, Device, device_named
from attlas.saes.scaling.shapes import ModelShape, depth, model_shape
from attlas.saes.training.config import TrainConfig

BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SPARE = 0.05
"""Share of a GPU's memory that the driver, the context and gaps between blocks take (assumed)."""


@dataclass(frozen=True)
class Plan:
    """A configuration in numbers; every figure is computed, none measured.

    Attributes:
        device: the GPU planned for.
        model: its sizes.
        hooks: hook → width.
        form: how processes share the work: alone, hooks, data or features.
        processes: how many, one a GPU.
        parameters: of all autoencoders.
        memory: what the fullest process holds at its peak, part → bytes.
        flops, traffic, sent: operations, bytes moved and bytes sent of one process a step.
        seconds: of a step, part → seconds.
        batch: tokens a step, all processes.
        n_tokens: of the run.
        limit: bytes that may be used of a GPU's memory.
    """

    device: Device
    model: ModelShape
    hooks: dict[str, int]
    form: str
    processes: int
    parameters: int
    memory: dict[str, float]
    flops: dict[str, float]
    traffic: float
    sent: float
    seconds: dict[str, float]
    batch: int
    n_tokens: int
    limit: float

    @property
    def peak(self) -> float:
        """Bytes of the fullest process."""
        return sum(self.memory.values())

    @property
    def tokens_per_second(self) -> float:
        """Expected, all processes, one part after the other, as if nothing overlapped."""
        return self.batch / sum(self.seconds.values())

    @property
    def hours(self) -> float:
        """Expected, of the whole run."""
        return self.n_tokens / self.tokens_per_second / 3600

    @property
    def misfits(self) -> list[str]:
        """What does not fit, in words; empty where all fits."""
        if self.peak <= self.limit:
            return []
        have = f"a GPU has {self.limit / 1e9:,.1f} GB to use"
        found = [f"{part}: {size / 1e9:,.1f} GB, {have}" for part, size in self.memory.items() if size > self.limit]
        return found or [f"all together: {self.peak / 1e9:,.1f} GB, {have}"]

    def advice(self) -> str | None:
        """What would make it fit, or None."""
        if not self.misfits:
            return None
        if self.memory["model"] > self.limit / 2:
            return "open the model in bfloat16, or capture to a store first (attlas capture) with device_map='auto'"
        if self.memory["buffer"] > self.limit / 4:
            return "lower --buffer-tokens, or --activation-dtype bfloat16"
        return (
            "share the features among more processes: torchrun --nproc-per-node P -m attlas train --parallel features"
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, value, how it is known), for reading."""
        gb = {part: f"{size / 1e9:,.2f} GB" for part, size in self.memory.items()}
        steps = {f"a step: {part}": f"{1e3 * s:,.2f} ms" for part, s in self.seconds.items()}
        values = {
            "autoencoders": f"{len(self.hooks)} on {self.model.name}, {self.form}, {self.processes} × {self.device.name}",
            "parameters": f"{self.parameters:,}",
            **{f"memory: {part}": size for part, size in gb.items()},
            "memory: peak of a process": f"{self.peak / 1e9:,.2f} GB of {self.limit / 1e9:,.1f} GB",
            **{f"operations a step: {part}": f"{n / 1e12:,.3f} TFLOP" for part, n in self.flops.items()},
            "memory traffic a step": f"{self.traffic / 1e9:,.2f} GB",
            "sent a step": f"{self.sent / 1e9:,.3f} GB",
            **steps,
            "tokens a second": f"{self.tokens_per_second:,.0f}",
            "hours": f"{self.hours:,.2f} for {self.n_tokens:,} tokens",
        }
        timed = ("a step:", "tokens a second", "hours")
        return [
            (what, v, "computed, assumed rates" if what.startswith(timed) else "computed") for what, v in values.items()
        ]

    def summary(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "device": self.device.name,
            "model": self.model.name,
            "form": self.form,
            "processes": self.processes,
            "parameters": self.parameters,
            "memory": self.memory,
            "peak": self.peak,
            "limit": self.limit,
            "flops": self.flops,
            "traffic": self.traffic,
            "sent": self.sent,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "misfits": self.misfits,
            "basis": "computed",
        }


def plan(
    config: TrainConfig | None = None,
    *,
    device: str | Device = "h100",
    memory: float | None = None,
    processes: int = 1,
    form: str = "auto",
) -> Plan:
    """What a training will take.

    Args:
        config: of the training; its model is looked up by its config.json or among the published sizes, not opened.
        device: a GPU by name (attlas.saes.scaling.devices).
        memory: bytes of a GPU, in place of the named one's.
        processes: one a GPU.
        form: "hooks", "data" or "features"; "auto" as in `attlas train --parallel`.

    Raises:
        ConfigError: the processes do not divide the batch or the features, or k is above a process's features.
        HookNameError: a hook matches nothing.

    Example:
        >>> from attlas.saes import TrainConfig, plan
        >>> found = plan(TrainConfig(model="gpt2-mini", d_sae=24_576, k=32), device="h100")
        >>> found.parameters, found.misfits
        (9461952, [])
    """
    config = config or TrainConfig()
    device = device if isinstance(device, Device) else device_named(device)
    shape = model_shape(config.model)
    widths = {hook: shape.width(hook) for hook in shape.hooks(config.hooks)}
    cfgs = {hook: config.sae_config(width) for hook, width in widths.items()}
    least = min(cfg.d_sae for cfg in cfgs.values())
    form = share_form(form, processes, len(widths))
    check_share(form, processes, n_hooks=len(widths), batch=config.batch_size, d_sae=least, k=config.k)
    chosen = config.precision
    if chosen == "auto":  # what a GPU takes; where processes share one autoencoder, autograd's step in float32
        chosen = "bfloat16" if config.fused and form in ("alone", "hooks") else "float32"
    cost: Sequence[Costs] = [
        sae_costs(
            config.arch,
            cfg.d_in,
            cfg.d_sae,
            k=cfg.k,
            batch=config.batch_size,
            processes=processes,
            form=form,
            fused=config.fused,
            precision=chosen,
        )
        for cfg in cfgs.values()
    ]
    own = cost if form != "hooks" else cost[: -(-len(cost) // processes)]  # of the process that has most
    own_widths = list(widths.values())[: len(own)]
    n_layers = max(map(depth, widths))
    item, row = BYTES[config.activation_dtype], BYTES[config.dtype]
    _, buffered = buffer_bytes(own_widths, config.buffer_tokens, item)
    chunk = config.capture_batch * config.seq_len // processes
    forward = chunk * row * (6 * shape.d_model + 3 * shape.d_mlp + 3 * shape.n_heads * shape.d_head)
    held: dict[str, float] = {
        "model": shape.parameters * row,
        "forward pass": forward + 4 * chunk * sum(widths.values()),
        "buffer": buffered,
        "weights": sum(c.weights for c in own),
        "Adam": sum(c.adam for c in own),
        "gradients": sum(c.gradients for c in own),
        "step": max(c.step for c in own),
    }
    if config.store is not None or config.model_device is not None:
        held["model"] = held["forward pass"] = 0.0
    tokens = config.batch_size / processes
    flops = {"model": tokens * shape.flops(n_layers, config.seq_len), "autoencoders": sum(c.flops for c in own)}
    traffic = sum(c.traffic for c in own)
    shared = 4.0 * config.batch_size * sum(widths.values()) * (processes - 1) / processes
    sent = sum(c.sent for c in own) + shared
    rate = {"bfloat16": device.bfloat16, "tf32": device.tf32}.get(chosen, device.float32)
    model_rate = {2: device.bfloat16, 4: device.float32}.get(row, device.float32 / 2)
    seconds = {
        "model": 0.0 if config.store is not None else flops["model"] / (MATRIX * model_rate),
        "arithmetic": flops["autoencoders"] / (MATRIX * rate),
        "memory": traffic / (MOVED * device.bandwidth),
        "sending": sent / (LINKED * (device.link if processes <= MACHINE else min(device.link, BETWEEN))),
    }
    return Plan(
        device=device,
        model=shape,
        hooks=widths,
        form=form,
        processes=processes,
        parameters=sum(c.parameters for c in cost),
        memory=held,
        flops=flops,
        traffic=traffic,
        sent=sent,
        seconds=seconds,
        batch=config.batch_size,
        n_tokens=config.n_tokens,
        limit=(memory or device.memory) * (1 - SPARE),
    )


def share_form(form: str, processes: int, n_hooks: int) -> str:
    """How processes share a training: as asked; "auto" deals out whole autoencoders where every process gets one, and
    else divides the batch. One process works alone.

    Example:
        >>> from attlas.saes.scaling.plan import share_form
        >>> share_form("auto", 4, n_hooks=12), share_form("auto", 4, n_hooks=1), share_form("features", 4, n_hooks=1)
        ('hooks', 'data', 'features')
    """
    if processes == 1:
        return "alone"
    return form if form != "auto" else "hooks" if n_hooks >= processes else "data"


def check_share(form: str, processes: int, *, n_hooks: int, batch: int, d_sae: int | None = None, k: int = 1) -> None:
    """Refuse what cannot be divided among the processes.

    Raises:
        ConfigError: fewer hooks than processes, or the batch or the features do not divide, or k > features of one.
    """
    if form == "hooks" and n_hooks < processes:
        raise ConfigError(
            f"{n_hooks} hooks cannot be dealt out to {processes} processes; use {n_hooks} at most, or --parallel data"
        )
    if form == "data" and batch % processes:
        raise ConfigError(
            f"batch_size={batch} cannot be divided among {processes} processes; give a multiple of {processes}"
        )
    if form != "features" or d_sae is None:
        return
    if d_sae % processes:
        raise ConfigError(
            f"d_sae={d_sae} cannot be divided among {processes} processes; give a multiple of {processes}"
        )
    if k > d_sae // processes:
        raise ConfigError(
            f"k={k} is more than the {d_sae // processes} features that each of {processes} processes has; use fewer processes"
        )

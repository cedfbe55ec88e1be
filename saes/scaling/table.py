"""The tables of docs/scaling.md, made by `plan`; a test holds the page to them."""

from __future__ import annotations

import dataclasses

from attlas.saes.scaling.costs import MATRIX
from attlas.saes.scaling.devices import DEVICES
from attlas.saes.scaling.plan import Plan, plan
from attlas.saes.scaling.shapes import ModelShape, model_shape
from attlas.saes.training.config import TrainConfig

SIZES = (
    ("gpt2", 24_576),
    ("gpt2", 262_144),
    ("llama-3.2-1b", 65_536),
    ("llama-3.2-1b", 262_144),
    ("llama-3.1-8b", 131_072),
    ("llama-3.1-8b", 1_048_576),
    ("llama-3.1-70b", 262_144),
    ("llama-3.1-70b", 1_048_576),
    ("llama-3.1-70b", 4_194_304),
)
MODELS = ("smollm2-135m", "gpt2", "llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b")
BASE = TrainConfig(k=32, batch_size=4096, n_tokens=1_000_000_000, seq_len=1024, dtype="bfloat16")
MOST = 64  # processes


def planned(model: str, d_sae: int) -> Plan:
    """One autoencoder on the residual stream at half depth, on the fewest H100s that hold it; activations from a store
    where the model does not fit one."""
    shape = model_shape(model)
    config = dataclasses.replace(
        BASE, model=model, d_sae=d_sae, hooks=(f"blocks.{shape.n_layers // 2}.hook_resid_post",)
    )
    processes = 1
    while True:
        found = plan(config, processes=processes, form="features")
        if found.memory["model"] > found.limit:
            found = _stored(found)
        if not found.misfits or processes == MOST:
            return found
        processes *= 2


def _stored(found: Plan) -> Plan:
    memory = found.memory | {"model": 0.0, "forward pass": 0.0}
    return dataclasses.replace(found, memory=memory, seconds=found.seconds | {"model": 0.0})


def sae_table() -> list[str]:
    """Lines of Markdown: an autoencoder a row.

    Example:
        >>> from attlas.saes.scaling.table import sae_table
        >>> sae_table()[2].split("|")[1:4]
        [' gpt2 ', ' 768 × 24,576 ', ' 37.8 M ']
    """
    lines = [
        "| model | D × features | parameters | H100s | weights, Adam | gradients | buffer | model | peak a GPU | TFLOP a step "
        "(model, SAE) | traffic a step | sent a step | tokens/s | hours, 1 B tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, d_sae in SIZES:
        p = planned(model, d_sae)
        m = p.memory
        stored = "store" if not m["model"] else _gb(m["model"])
        parts = [
            model,
            f"{next(iter(p.hooks.values())):,} × {d_sae:,}",
            _count(p.parameters),
            str(p.processes),
            _gb(m["weights"] + m["Adam"]),
            _gb(m["gradients"]),
            _gb(m["buffer"]),
            stored,
            _gb(p.peak),
            f"{0.0 if not m['model'] else p.flops['model'] / 1e12:.2f}, {p.flops['autoencoders'] / 1e12:.2f}",
            _gb(p.traffic),
            _gb(p.sent),
            f"{p.tokens_per_second:,.0f}",
            f"{p.hours:,.1f}",
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return lines


def model_table() -> list[str]:
    """Lines of Markdown: a model a row, run to half its depth and to its end."""
    lines = [
        "| model | parameters | bfloat16 | GFLOP a token (half, all layers) | tokens/s an H100 (half, all) | fits 80 GB |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        shape = model_shape(name)
        half, whole = (shape.flops(n, BASE.seq_len) for n in (shape.n_layers // 2 + 1, shape.n_layers))
        found = [_rate(shape, flops) for flops in (half, whole)]
        fits = "yes" if shape.parameters * 2 < 76e9 else "no"
        lines.append(
            f"| {name} | {_count(shape.parameters)} | {_gb(2.0 * shape.parameters)} | {half / 1e9:,.2f}, {whole / 1e9:,.2f} | "
            f"{found[0]:,.0f}, {found[1]:,.0f} | {fits} |"
        )
    return lines


def _rate(shape: ModelShape, flops: float) -> float:
    return MATRIX * DEVICES["h100"].bfloat16 / flops


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size < 10e9 else f"{size / 1e9:,.0f} GB"


def _count(n: int) -> str:
    return f"{n / 1e9:,.1f} B" if n >= 1e9 else f"{n / 1e6:,.1f} M"

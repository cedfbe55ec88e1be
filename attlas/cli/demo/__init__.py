"""`attlas demo`: the whole job on the embedded models, with no network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from attlas.cli.common import Output
from attlas.cli.options import OutArgs


@dataclass(frozen=True)
class Args(OutArgs):
    """Train, evaluate and interpret a sparse autoencoder on gpt2-mini; measure its entropy, its heads on a corpus and over
    training, its redundancy and what dropping layers costs; patch its induction circuit; rank and draw the heads of vit-mini;
    and open the atlas. Steps whose results are in the workspace already are skipped.

    Example: attlas demo --workspace workspace
    """

    hook: str = "blocks.3.attn.hook_z"
    """Where to train the autoencoder; layer 3 of gpt2-mini holds its induction head."""
    n_tokens: int = 800_000
    """Tokens to train on."""
    n_images: int = 500
    """Glyphs to rank ViT heads on."""
    seed: int = 0
    """Seed of everything."""
    serve: bool = True
    """Open the dashboard at the end; --no-serve stops before."""
    port: int = 8050
    """Port of the dashboard on 127.0.0.1."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Every step that is not in the workspace yet; then the dashboard."""
    from attlas.cli.demo.steps import STEPS, Demo

    demo = Demo(args, out)
    seconds: dict[str, float] = {}
    for name in STEPS:
        out.say(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        demo.runs[name] = demo.found(name) or getattr(demo, name.replace(" ", "_"))()
        seconds[name] = round(time.perf_counter() - start, 1)
    out.table("attlas demo", ["step", "seconds", "run"], [(n, seconds[n], demo.runs[n].id) for n in seconds])
    if args.serve:
        from attlas.dashboard.server import serve

        serve(demo.workspace.path, port=args.port)
    return {
        "workspace": str(demo.workspace.path),
        "seconds": seconds,
        "runs": {name: saved.id for name, saved in demo.runs.items()},
    }

"""Pruned vision transformers beside the whole one: FLOPs, latency, throughput, parameters and accuracy.

Every model is written as a checkpoint and opened by transformers' own `from_pretrained`, so nothing of attlas runs in it.
`attlas bench pruned_speed` runs it too; python benchmarks/pruned_vit.py [MODEL] [N heads to drop] [--json]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import compare, main, report
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification

from attlas.analyses.common.losses import quality
from attlas.analyses.pruning.budget import n_parameters
from attlas.analyses.pruning.checkpoint import export
from attlas.analyses.pruning.orders import ranked
from attlas.analyses.pruning.scores import Scores
from attlas.analyses.pruning.surgery import forward_logits
from attlas.data.images.dataset import ImageDataset, load_images
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop, Unit, unit_name

PASSES = {1: 20, 32: 2}  # passes timed together, by batch size: a single small one is noise


def flops(hf: Any, pixels: torch.Tensor) -> int:
    """Floating-point operations of a forward pass (2 a multiplication with its addition), by PyTorch's counter.

    Attention is taken apart into its matrix products, since the counter does not count the CPU's fused attention.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        hf(pixels)
    return int(counter.get_total_flops())


def reopened(model: HookedModel, drops: dict[str, tuple[Drop, str] | None], folder: Path) -> dict[str, Any]:
    """Each as a checkpoint below `folder`, opened by transformers in float32; None is the whole model."""
    found = {}
    for index, (name, drop) in enumerate(drops.items()):
        place = folder / str(index)
        if drop is None:
            model.hf.save_pretrained(place)
        else:
            export(model, drop[0], place, format=drop[1], verify=False)
        opened = AutoModelForImageClassification.from_pretrained(place, trust_remote_code=True, dtype=torch.float32)
        found[name] = opened.to(model.device).eval()
    return found


def _repeated(hf: Any, pixels: torch.Tensor, n_passes: int) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        for _ in range(n_passes):
            hf(pixels)

    return run


def _choices(whole: HookedModel, images: ImageDataset, n_heads: int | None) -> tuple[list[Unit], Unit]:
    """The least important heads (a third of them by default), and the block that changes the stream least."""
    scores = Scores(whole, images)
    heads = ranked(scores.of("head"))
    n = n_heads if n_heads is not None else max(1, len(heads) // 3)
    return heads[:n], ranked(scores.of("block"))[0]


def run(
    rounds: int = 7, model: str = "vit-mini", n_heads: int | None = None, n_images: int = 200, passes: int | None = None
) -> dict[str, Any]:
    """Time a third of the heads gone, in compact and stock form, and one block gone, beside the whole model.

    Args:
        rounds: interleaved rounds.
        model: a ViT classifier with labelled images.
        n_heads: heads to drop.
        n_images: images that rank heads and blocks, and as many others for the accuracy.
        passes: forward passes timed together; PASSES by default.
    """
    whole = load_model(model)
    images = load_images("embedded:glyphs", whole.image_spec, n_images=2 * n_images, seed=0)
    half = len(images) // 2
    rest = images.select(range(half, len(images)))
    heads, block = _choices(whole, images.take(half), n_heads)
    gone = Drop.of(heads, whole.cfg.n_heads)
    a_third = f"{len(heads)} of {whole.cfg.n_layers * whole.cfg.n_heads} heads gone"
    drops: dict[str, tuple[Drop, str] | None] = {
        f"{a_third}, compact": (gone, "compact"),
        f"{a_third}, stock": (gone, "stock"),
        f"block {block[1]} gone": (Drop.of([block]), "stock"),
        "whole model": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        built = reopened(whole, drops, Path(folder))
    facts = {name: _facts(whole, hf, rest) for name, hf in built.items()}
    results = []
    for batch, usual in PASSES.items():
        n = passes or usual
        pixels = images.pixels[:1].expand(batch, -1, -1, -1).contiguous().to(whole.device)
        contestants = {name: _repeated(hf, pixels, n) for name, hf in built.items()}
        timings = compare(contestants, rounds, whole.device.type == "cuda")
        found = report(f"{whole.name}, batches of {batch}, {n} passes", timings)
        for row in found["rows"]:
            row |= {"batch": batch, "ms_per_batch": row["median"] / n * 1e3, "images_per_s": n * batch / row["median"]}
            row["flops_per_s"] = facts[row["name"]]["flops"] * row["images_per_s"]
            said = f"{row['ms_per_batch']:.2f} ms a batch, {row['images_per_s']:.0f} images/s"
            print(f"  {row['name']:34} {said}, {row['flops_per_s'] / 1e9:.1f} GFLOP/s", file=sys.stderr)
        results.append(found)
    names = ", ".join(unit_name(unit, whole.cfg.n_heads) for unit in heads)
    return {"dropped": names, "models": [{"name": name, **row} for name, row in facts.items()], "results": results}


def _facts(whole: HookedModel, hf: Any, images: ImageDataset) -> dict[str, Any]:
    loss, accuracy, n = quality(whole, images, 32, lambda x: forward_logits(hf, x))
    row = {"parameters": n_parameters(hf), "flops": flops(hf, images.pixels[:1].to(whole.device)), "loss": loss}
    row |= {"accuracy": accuracy, "n_images": n}
    print(
        f"  {type(hf).__name__:34} {row['parameters'] / 1e6:.3f} M parameters, {row['flops'] / 1e6:.1f} MFLOPs an image, "
        f"right on {accuracy:.1%} of {n}",
        file=sys.stderr,
    )
    return row


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if not a.startswith("-")]
    main(lambda: run(7, *given[:1], *(int(n) for n in given[1:2])))

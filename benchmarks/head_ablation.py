"""Exact ablation of every head: ours, which shares the layers in front of it, against a whole forward pass a head.

By counting layers this saves up to 2·L/(L + 1) for L of them, and a little more, since the ablated layer attends once for
all its heads.

python benchmarks/head_ablation.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import compare, main, report

from attlas.analyses.common.losses import sequence_loss
from attlas.analyses.redundancy.heads import HeadEffectsConfig, head_effects
from attlas.data.images.dataset import load_images
from attlas.data.text import load_tokens
from attlas.interp import HookedModel, load_model

# model → (sequences or images, tokens each)
SHAPES = {"gpt2-mini": (8, 128), "vit-mini": (32, 0)}


def run(rounds: int = 5) -> dict:
    return {"results": [measure(load_model(name, device="cpu"), *shape, rounds) for name, shape in SHAPES.items()]}


def measure(model: HookedModel, n: int, length: int, rounds: int) -> dict:
    """Times of both, after a check that they find the same effects."""
    vision = model.cfg.family == "vit"
    data: Any = (
        load_images("embedded:glyphs", model.image_spec, n_images=n)
        if vision
        else load_tokens("embedded:val", model.tokenizer, seq_len=length, n_tokens=n * length)
    )
    config = HeadEffectsConfig(ablations=("zero",), batch_size=n)
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = head_effects(model, data, config).mean("zero")

    @torch.no_grad()
    def naive() -> None:
        batch = next(iter(data.batches(n)))
        target = data.labels[:n].to(model.device) if vision else batch
        found["naive"] = _every_head(model, lambda: sequence_loss(model, target, model(batch)).mean())

    timings = compare({"attlas head_effects": ours, "a forward pass a head": naive}, rounds)
    np.testing.assert_allclose(found["ours"], found["naive"], atol=1e-4)
    layers = model.cfg.n_layers
    what = f"{n} images" if vision else f"{n} × {length} tokens"
    title = f"zero-ablation of the {layers * model.cfg.n_heads} heads of {model.name}, {what}"
    return report(title, timings) | {"bound": 2 * layers / (layers + 1)}


def _every_head(model: HookedModel, loss: Callable[[], torch.Tensor]) -> np.ndarray:
    """Δ loss [layer, head], with plain torch hooks on the input of each output projection."""
    clean, d_head = loss(), model.cfg.d_head
    effects = np.zeros((model.cfg.n_layers, model.cfg.n_heads))
    for layer, parts in enumerate(model.layers):
        for head in range(model.cfg.n_heads):

            def silence(_module: object, args: tuple[torch.Tensor, ...], head: int = head) -> tuple[torch.Tensor]:
                z = args[0].clone()
                z[..., head * d_head : (head + 1) * d_head] = 0
                return (z,)

            handle = parts.out_proj.register_forward_pre_hook(silence)
            effects[layer, head] = float(loss() - clean)
            handle.remove()
    return effects


if __name__ == "__main__":
    main(run)

"""Capture of every layer's hook_z: HookedModel.capture against TransformerBridge.run_with_cache.

python benchmarks/capture.py
python benchmarks/capture.py --busy 2    idle, and beside two spinning processes
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from busy import asked, compare_busy, report_busy
from common import compare, main, report

# model → (sequences, tokens each)
SHAPES = {"gpt2-mini": (8, 256), "smollm2-135m": (2, 256)}


def run(rounds: int = 7, spinning: int = 0) -> dict:
    from attlas.errors import ModelNotFoundError

    results = []
    for name, (n, length) in SHAPES.items():
        try:
            results.append(_measure(name, n, length, rounds, spinning))
        except ModelNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return {"results": results}


def _measure(name: str, n: int, length: int, rounds: int, spinning: int) -> dict:
    from transformer_lens.model_bridge import TransformerBridge

    from attlas.data.models_catalog import resolve_model
    from attlas.interp import load_model

    model = load_model(name, device="cpu")
    bridge = TransformerBridge.boot_transformers(str(resolve_model(name).folder), device="cpu")
    tokens = torch.randint(0, model.cfg.d_vocab, (n, length), generator=torch.Generator().manual_seed(0))
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]

    @torch.no_grad()
    def peer() -> object:
        return bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_z"))

    @torch.no_grad()
    def ours() -> object:
        return model.capture(tokens, names)

    # of a token: q·kᵀ and a·v, causal
    attention = 2.0 * model.cfg.n_layers * length * model.cfg.n_heads * model.cfg.d_head
    flops = tokens.numel() * (2.0 * _weights_to_last_z(model) + attention)
    contestants = {"attlas capture": ours, "TransformerBridge.run_with_cache": peer}
    title = f"all hook_z of {name}, {tokens.numel()} tokens"
    if spinning:
        return report_busy(title, compare_busy(contestants, spinning, rounds), spinning)
    return report(title, compare(contestants, rounds), flops)


def _weights_to_last_z(model: Any) -> int:
    """Entries of the weight matrices that the last hook_z depends on: those of the blocks, less the last one's output
    projection and MLP."""

    def entries(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.dim() == 2)

    last = model.layers[-1]
    return sum(entries(parts.block) for parts in model.layers) - entries(last.out_proj) - entries(last.mlp)


if __name__ == "__main__":
    main(lambda: run(spinning=asked()))

"""Capture of every layer's hook_z: HookedModel.capture against TransformerBridge.run_with_cache.

python benchmarks/capture.py
"""

from __future__ import annotations

import torch
from common import compare, main, report


def run(rounds: int = 7) -> dict:
    from transformer_lens.model_bridge import TransformerBridge

    from attlas.data.models_catalog import resolve_model
    from attlas.interp import load_model

    model = load_model("gpt2-mini", device="cpu")
    folder = str(resolve_model("gpt2-mini").folder)
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    tokens = torch.randint(0, model.cfg.d_vocab, (8, model.cfg.n_ctx))
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]

    @torch.no_grad()
    def peer() -> object:
        return bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_z"))

    @torch.no_grad()
    def ours() -> object:
        return model.capture(tokens, names)

    timings = compare({"attlas capture": ours, "TransformerBridge.run_with_cache": peer}, rounds)
    return {"results": [report(f"all hook_z of gpt2-mini, {tokens.numel()} tokens", timings)]}


if __name__ == "__main__":
    main(run)

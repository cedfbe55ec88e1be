"""Attention statistics: ours against whole attention maps, as Hugging Face's eager attention returns them.

python benchmarks/attention_stats.py
"""

from __future__ import annotations

import torch
from common import compare, main, report

from attlas.kernels import AttentionRule, attention_stats

SHAPES = ((1, 6, 1024, 64), (1, 6, 2048, 64))


def run(rounds: int = 5) -> dict:
    results = []
    for B, H, T, e in SHAPES:
        torch.manual_seed(0)
        q, k, v = (torch.randn(B, H, T, e) for _ in range(3))

        def maps(q=q, k=k, T=T, e=e) -> object:
            logits = q @ k.mT * e**-0.5
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            a = logits.masked_fill(future, -torch.inf).softmax(-1)
            entropy = -torch.special.xlogy(a, a).sum(-1)
            distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
            return entropy, a.amax(-1), a[..., 0], (a * (distance < 8)).sum(-1), (a * distance).sum(-1)

        found = {
            "attlas attention_stats": lambda q=q, k=k: attention_stats(q, k, AttentionRule(causal=True)),
            "whole maps, five statistics": maps,
            "SDPA forward": lambda q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True
            ),
        }
        flops, size = B * H * T * T * e * 1.0, 4.0 * B * H * T * (2 * e + 9)  # half of q·kᵀ; q, k, nine statistics
        results.append(
            report(f"attention statistics, B {B}, H {H}, T {T}, e {e}, causal", compare(found, rounds), flops, size)
        )
    results += _hugging_face(rounds)
    return {"results": results}


def _hugging_face(rounds: int) -> list[dict]:
    """A GPT-2 layer's own eager attention with its maps, from the same inputs."""
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=1, n_head=6, n_embd=384, n_positions=1024, attn_implementation="eager")).eval()
    tokens = torch.randint(0, 50257, (1, 1024))
    attn = model.h[0].attn
    kept: dict[str, torch.Tensor] = {}
    attn.c_attn.register_forward_hook(lambda module, inputs, output: kept.__setitem__("qkv", output))

    @torch.no_grad()
    def eager() -> object:
        a = model(tokens, output_attentions=True).attentions[0]
        return -torch.special.xlogy(a, a).sum(-1)

    @torch.no_grad()
    def streamed() -> object:
        model.config._attn_implementation = "sdpa"
        model(tokens)
        model.config._attn_implementation = "eager"
        q, k, _ = kept["qkv"].split(384, -1)
        return attention_stats(*(t.view(1, -1, 6, 64).transpose(1, 2) for t in (q, k)), rule=AttentionRule(causal=True))

    found = {"SDPA model + attention_stats": streamed, "HF eager, output_attentions": eager}
    return [report("one GPT-2 layer, 6 heads, T 1024, with entropy", compare(found, rounds))]


if __name__ == "__main__":
    main(run)

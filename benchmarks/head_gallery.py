"""One pass over heads: ours by tiles, against eager attention maps of Hugging Face with the same definitions.

python benchmarks/head_gallery.py [--lengths 256 512] [--n-tokens 8192] [--rounds 3]

Both run the same random GPT-2 on the same tokens and find HeadVis's six metrics of every head, the activation of every
sequence (largest weight off the first position), and the eight strongest keys of every query of kept sequences; ours
besides finds the account and four more scores. Both keep rows as they go, as HeadVis's pipeline does.
Before timing, the six metrics are held equal to 1e-4, and the rows.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import compare, main, report
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attlas.analyses.heads.atlas import HeadAtlas
from attlas.analyses.heads.config import HeadsConfig
from attlas.analyses.heads.gallery import Edges, KeptRows, Place, choose_all, read_edges
from attlas.analyses.heads.measure import INDUCTION_FLOOR, measure
from attlas.data.text import TokenDataset
from attlas.interp import load_model

LENGTHS = (256, 512, 1024, 2048)
N_TOKENS = 8192  # a length, in sequences of it
LAYERS, HEADS, D_MODEL, D_VOCAB = 4, 6, 384, 1024
CONFIG = HeadsConfig(batch_size=4, n_control=0)
SIX = (
    "self_attention_score", "prev_token_score", "pattern_entropy", "qk_distance", "qk_distance_variance", "induction_score",
)  # fmt: skip
Rows = dict[Place, tuple[Tensor, Tensor]]


@dataclass
class Found:
    """What either side found."""

    scores: dict[str, np.ndarray]
    activation: np.ndarray
    edges: dict[Place, Edges] | Rows


def tokens_of(length: int, n_tokens: int) -> Tensor:
    """Zipf-like tokens of which many repeat, int64 [n_tokens / length, length], two rows at least."""
    generator = torch.Generator().manual_seed(length)
    weights = 1 / torch.arange(1, D_VOCAB + 1, dtype=torch.float64)
    drawn = torch.multinomial(weights, max(2, n_tokens // length) * length, replacement=True, generator=generator)
    return drawn.view(-1, length)


def gpt2(length: int) -> GPT2LMHeadModel:
    """Random, with weights large enough for maps that are far from even."""
    torch.manual_seed(0)
    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": D_MODEL, "vocab_size": D_VOCAB, "n_positions": length}
    model = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= 4
    return model


def ours(hf: GPT2LMHeadModel, tokens: Tensor) -> Callable[[], Found]:
    model = load_model(hf, device="cpu")
    data = TokenDataset.from_tokens(tokens, "zipf")

    def run() -> Found:
        rows = KeptRows(CONFIG, len(data))
        sums = measure(model, data, CONFIG, rows=rows)
        chosen = choose_all({"weight": sums.activation["weight"]}, CONFIG)
        edges = read_edges(model, data, chosen, CONFIG, kept=rows)
        scores = HeadAtlas(sums, chosen, edges, {}, CONFIG).scores()
        return Found({name: scores[name] for name in SIX}, sums.activation["weight"], edges)

    return run


def eager(hf: GPT2LMHeadModel, tokens: Tensor) -> Callable[[], Found]:
    """Whole maps from Hugging Face, and the definitions on them."""
    model = copy.deepcopy(hf)
    model.set_attn_implementation("eager")
    n, T = tokens.shape
    at = torch.arange(T)
    distance = (at[:, None] - at).abs().float()

    @torch.no_grad()
    def run() -> Found:
        total = {name: torch.zeros(LAYERS, HEADS, dtype=torch.float64) for name in (*SIX, "square")}
        activation = torch.zeros(n, LAYERS, HEADS)
        rows: Rows = {}
        n_repeats = 0
        for start in range(0, n, CONFIG.batch_size):
            batch = tokens[start : start + CONFIG.batch_size]
            maps = model(batch, output_attentions=True, use_cache=False).attentions
            pairs, repeats = _after_copies(batch)
            n_repeats += repeats
            for layer, a in enumerate(maps):
                found = {
                    "self_attention_score": a.diagonal(0, -2, -1).sum((0, 2)),
                    "prev_token_score": a.diagonal(-1, -2, -1).sum((0, 2)),
                    "pattern_entropy": -(a * a.clamp_min(torch.finfo(a.dtype).tiny).log()).sum((0, 2, 3)),
                    "qk_distance": (a * distance).sum((0, 2, 3)),
                    "square": (a * distance.square()).sum((0, 2, 3)),
                }
                weights = a[pairs[0], :, pairs[1], pairs[2]]
                found["induction_score"] = torch.where(weights < INDUCTION_FLOOR, 0, weights).sum(0)
                for name, value in found.items():
                    total[name][layer] += value.double()
                activation[start : start + len(batch), layer] = a[:, :, 1:, 1:].amax((-1, -2))
                top = a.topk(CONFIG.keys_per_query, -1)
                for row in range(len(batch)):
                    for head in range(HEADS):
                        rows[layer, head, start + row] = top.values[row, head], top.indices[row, head]
        return Found(_means(total, n, T, n_repeats), activation.numpy(), rows)

    return run


def _means(total: dict[str, Tensor], n: int, T: int, n_repeats: int) -> dict[str, np.ndarray]:
    queries = {"prev_token_score": n * (T - 1), "induction_score": max(1, n_repeats)}
    found = {name: (value / queries.get(name, n * T)).numpy() for name, value in total.items()}
    found["qk_distance_variance"] = found.pop("square") - found["qk_distance"] ** 2
    return found


def _after_copies(batch: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Places (row, query, key) right after an earlier copy of the query's token, and how many queries have one."""
    same = (batch[:, :, None] == batch[:, None]).tril(-1)
    row, query, key = same.nonzero(as_tuple=True)
    return (row, query, key + 1), int(same.any(-1).sum())


def check(mine: Found, whole: Found) -> float:
    """The largest difference of any score; kept rows are compared too."""
    worst = max(float(np.abs(mine.scores[name] - whole.scores[name]).max()) for name in SIX[:4] + SIX[5:])
    square = np.abs(mine.scores[SIX[4]] - whole.scores[SIX[4]]) / whole.scores[SIX[4]]
    worst = max(worst, float(square.max()), float(np.abs(mine.activation - whole.activation).max()))
    for place, edges in mine.edges.items():
        values, _ = whole.edges[place]
        kept = values[values >= CONFIG.least_weight].numpy()
        assert abs(len(kept) - len(edges.weight)) <= 2, f"{place}: {len(edges.weight)} weights, eager {len(kept)}"
        if len(kept) == len(edges.weight):
            worst = max(worst, float(np.abs(np.sort(kept) - np.sort(edges.weight)).max()))
    assert worst < 1e-4, f"the two sides differ by {worst:.2g}"
    return worst


def run(lengths: tuple[int, ...] = LENGTHS, n_tokens: int = N_TOKENS, rounds: int = 3) -> dict:
    results = []
    for T in lengths:
        hf, tokens = gpt2(T), tokens_of(T, n_tokens)
        contestants = {"attlas heads": ours(hf, tokens), "HF eager, output_attentions": eager(hf, tokens)}
        mine, whole = (contestant() for contestant in contestants.values())
        worst = check(mine, whole)
        del mine, whole
        found = report(
            f"{LAYERS} layers × {HEADS} heads, d_model {D_MODEL}, T {T}, {tokens.numel():,} tokens, batches of "
            f"{CONFIG.batch_size}; largest difference {worst:.1g}",
            compare(contestants, rounds),
        )
        for row in found["rows"]:
            row["tokens_per_s"] = tokens.numel() / row["median"]
            print(f"  {row['name']:34} {row['tokens_per_s']:10,.0f} tokens/s", file=sys.stderr)
        results.append(found | {"length": T, "largest_difference": worst})
    return {"results": results}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--n-tokens", type=int, default=N_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    main(lambda: run(tuple(asked.lengths), asked.n_tokens, asked.rounds))

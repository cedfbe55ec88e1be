"""One pass over heads: ours by tiles, against eager attention maps of Hugging Face with the same definitions.

python benchmarks/head_gallery.py [--lengths 256 512] [--n-tokens 8192] [--rounds 3] [--d-model 384]

All run the same random GPT-2 on the same tokens. The first peer finds what ours finds, but for the largest logit, which HF
does not hand out: HeadVis's six metrics of every head, the account of its mass by eleven rules (over all queries, and over
those whose token occurred before), first position, largest weights, active queries, norms of outputs, each by sequence; the
activation of every sequence, and the eight strongest keys of every query. The second finds HeadVis's six, activations and
keys alone. Before timing, all are held equal to 1e-4. Seconds are wall time, and the processor's beside, which a busy machine
changes less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from common import compare, main, report
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import ModelOutput

from attlas.analyses.heads.atlas import HeadAtlas
from attlas.analyses.heads.config import HeadsConfig
from attlas.analyses.heads.gallery import Edges, KeptRows, Place, choose_all, read_edges
from attlas.analyses.heads.measure import INDUCTION_FLOOR, measure
from attlas.analyses.heads.rules import TextRules, Vocabulary
from attlas.data.text import TokenDataset
from attlas.interp import load_model
from attlas.kernels.attention_tiles import Block

LENGTHS = (256, 512, 1024, 2048)
N_TOKENS = 8192  # a length, in sequences of it
LAYERS, HEADS, D_MODEL, D_VOCAB = 4, 6, 384, 1024
FURTHER = ("sink_mass", "max_weight", "active", "output_ratio")
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
    more: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # sums of sequences [n, layer, head], by measure()'s names


def tokens_of(length: int, n_tokens: int) -> Tensor:
    """Zipf-like tokens of which many repeat, int64 [n_tokens / length, length], two rows at least."""
    generator = torch.Generator().manual_seed(length)
    weights = 1 / torch.arange(1, D_VOCAB + 1, dtype=torch.float64)
    drawn = torch.multinomial(weights, max(2, n_tokens // length) * length, replacement=True, generator=generator)
    return drawn.view(-1, length)


def gpt2(length: int, d_model: int = D_MODEL) -> GPT2LMHeadModel:
    """Random, with weights large enough for maps that are far from even."""
    torch.manual_seed(0)
    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": d_model, "vocab_size": D_VOCAB, "n_positions": length}
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
        more = {"norm": sums.activation["norm"]} | {name: sums.sums[name] for name in FURTHER}
        more |= {name: values for name, values in sums.sums.items() if ":" in name}
        return Found({name: scores[name] for name in SIX}, sums.activation["weight"], edges, more)

    return run


def eager(hf: GPT2LMHeadModel, tokens: Tensor, *, six_alone: bool = False) -> Callable[[], Found]:
    """Whole maps from Hugging Face, and the definitions on them."""
    model = copy.deepcopy(hf)
    model.set_attn_implementation("eager")
    further = None if six_alone else _Further(model, len(tokens))
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
            out = model(batch, output_attentions=True, use_cache=False, output_hidden_states=not six_alone)
            maps = out.attentions
            if further is not None:
                further.take(start, batch, out)
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
        more = {} if further is None else {name: values.numpy() for name, values in further.sums.items()}
        return Found(_means(total, n, T, n_repeats), activation.numpy(), rows, more)

    return run


class _Further:
    """What ours finds besides HeadVis's six, from whole maps and the inputs of output projections."""

    def __init__(self, model: GPT2LMHeadModel, n: int) -> None:
        self.vocabulary = Vocabulary.of(load_model(model, device="cpu"))
        self.z: list[Tensor] = []
        self.grams = []
        for block in model.transformer.h:
            W = block.attn.c_proj.weight.detach().view(HEADS, -1, block.attn.embed_dim)
            self.grams.append(W @ W.mT)
            block.attn.c_proj.register_forward_pre_hook(lambda _, args: self.z.append(args[0]))
        names = ("norm", *FURTHER, *(f"{of}:{rule}" for of in ("rule", "repeat") for rule in TextRules.names))
        self.sums = {name: torch.zeros(n, LAYERS, HEADS, dtype=torch.float64) for name in names}

    def take(self, start: int, batch: Tensor, out: ModelOutput) -> None:
        n, T = batch.shape
        rules = TextRules(batch, self.vocabulary, window=CONFIG.window, alike=CONFIG.alike)
        codes = rules.codes(Block(slice(0, n), slice(0, T), slice(0, T))).long().unsqueeze(1)
        for layer, a in enumerate(out.attentions):
            own, sink = a.diagonal(0, -2, -1)[..., 1:], a[..., 1:, 0]
            z = self.z[layer].unflatten(-1, (HEADS, -1))
            norms = torch.einsum("bthe,hef,bthf->bth", z, self.grams[layer], z).clamp(min=0).sqrt()[:, 1:]
            residual = torch.linalg.vector_norm(out.hidden_states[layer], dim=-1)[:, 1:, None]
            by_rule = a.new_zeros(*a.shape[:3], len(rules.names)).scatter_add_(-1, codes.expand_as(a), a)[:, :, 1:]
            again = by_rule * rules.occurred[:, None, 1:, None]
            found = {"sink_mass": sink.sum(-1), "max_weight": a[..., 1:, :].amax(-1).sum(-1), "norm": norms.amax(1)}
            found |= {"active": (1 - sink - own > CONFIG.active).sum(-1), "output_ratio": (norms / residual).sum(1)}
            for at, rule in enumerate(rules.names):
                found |= {f"rule:{rule}": by_rule[..., at].sum(-1), f"repeat:{rule}": again[..., at].sum(-1)}
            for name, value in found.items():
                self.sums[name][start : start + n, layer] = value.double()
        self.z.clear()


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


def check(mine: Found, whole: Found, T: int) -> float:
    """The largest difference of any score; kept rows are compared too."""
    worst = max(float(np.abs(mine.scores[name] - whole.scores[name]).max()) for name in SIX[:4] + SIX[5:])
    square = np.abs(mine.scores[SIX[4]] - whole.scores[SIX[4]]) / whole.scores[SIX[4]]
    worst = max(worst, float(square.max()), float(np.abs(mine.activation - whole.activation).max()))
    for name, values in whole.more.items():  # sums over T queries, but for the norm's maximum
        scale = np.abs(values).max() if name == "norm" else T
        worst = max(worst, float(np.abs(mine.more[name] - values).max()) / float(scale))
    for place, edges in mine.edges.items():
        values, _ = whole.edges[place]
        kept = values[values >= CONFIG.least_weight].numpy()
        assert abs(len(kept) - len(edges.weight)) <= 2, f"{place}: {len(edges.weight)} weights, eager {len(kept)}"
        if len(kept) == len(edges.weight):
            worst = max(worst, float(np.abs(np.sort(kept) - np.sort(edges.weight)).max()))
    assert worst < 1e-4, f"the two sides differ by {worst:.2g}"
    return worst


def _with_processor_time(run: Callable[[], Found], spent: list[float]) -> Callable[[], None]:
    def timed() -> None:
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)

    return timed


def run(lengths: tuple[int, ...] = LENGTHS, n_tokens: int = N_TOKENS, rounds: int = 3, d_model: int = D_MODEL) -> dict:
    results = []
    for T in lengths:
        hf, tokens = gpt2(T, d_model), tokens_of(T, n_tokens)
        contestants = {
            "attlas heads": ours(hf, tokens),
            "HF eager, the same quantities": eager(hf, tokens),
            "HF eager, HeadVis's six alone": eager(hf, tokens, six_alone=True),
        }
        mine, *others = (contestant() for contestant in contestants.values())
        worst = max(check(mine, whole, T) for whole in others)
        del mine, others
        spent: dict[str, list[float]] = {name: [] for name in contestants}
        timed = {name: _with_processor_time(contestant, spent[name]) for name, contestant in contestants.items()}
        found = report(
            f"{LAYERS} layers × {HEADS} heads, d_model {d_model}, T {T}, {tokens.numel():,} tokens, batches of "
            f"{CONFIG.batch_size}; largest difference {worst:.1g}",
            compare(timed, rounds),
        )
        ours_spent = spent["attlas heads"][-rounds:]
        for row in found["rows"]:
            of_processor = spent[row["name"]][-rounds:]
            ratios = sorted(theirs / own for theirs, own in zip(of_processor, ours_spent, strict=True))
            row |= {"tokens_per_s": tokens.numel() / row["median"], "processor_s": statistics.median(of_processor)}
            row["processor_ratios"] = ratios
            print(
                f"  {row['name']:34} {row['tokens_per_s']:10,.0f} tokens/s; processor {row['processor_s'] * 1e3:,.0f} ms, "
                f"{statistics.median(ratios):.2f} times ours ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                file=sys.stderr,
            )
        results.append(found | {"length": T, "largest_difference": worst})
    return {"results": results}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--n-tokens", type=int, default=N_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--d-model", type=int, default=D_MODEL)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    main(lambda: run(tuple(asked.lengths), asked.n_tokens, asked.rounds, asked.d_model))

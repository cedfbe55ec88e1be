"""What each head is by its weights alone: OV and QK matrices, whom it copies and matches, and with which heads it composes.

A head is two bilinear forms on the residual stream (Elhage et al. 2021, transformer-circuits.pub/2021/framework): with rows
as vectors, W_QK = W_Q · W_Kᵀ says what it attends to and W_OV = W_V · W_O what it moves. Both have rank d_head, and nothing
of size d_model × d_model or d_vocab² is ever made: all comes from d_head × d_head products.

Norms are folded: the weights of the norm in front stand in W_Q, W_K and W_V (LayerNorm's centring too), those of the final
norm in the unembedding. Biases are left out. Rotary embeddings turn W_QK with the distance; here it is that of distance 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from attlas.analyses.heads.scatter import scatter
from attlas.analyses.heads.weight_config import WeightsConfig
from attlas.analyses.heads.weight_tables import HEAD_COMPOSITION, HEAD_TOKEN_PAIRS, HEAD_WEIGHTS
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.attended import refuse_absent_heads

KINDS = ("q", "k", "v")


@dataclass(frozen=True)
class Folded:
    """Weights of every head with the norms in front folded in, float64.

    Attributes:
        W_Q, W_K, W_V: [layer, head, d_model, d_head].
        W_O: [layer, head, d_head, d_model].
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor


def folded(model: HookedModel) -> Folded:
    """Weights of every head; a kv head stands once for every query head that shares it.

    W_Q bears the scale of scores, W_O the layer scale of vision models that have one.
    """
    parts: dict[str, list[Tensor]] = {"W_Q": [], "W_K": [], "W_V": [], "W_O": []}
    group = model.cfg.n_heads // model.cfg.n_kv_heads
    for layer, modules in enumerate(model.layers):
        for name in ("W_Q", "W_K", "W_V"):
            weight = _behind_norm(model, modules.ln1, getattr(model, name)(layer).detach().double())
            parts[name].append(weight if name == "W_Q" else weight.repeat_interleave(group, 0))
        parts["W_Q"][-1] = parts["W_Q"][-1] * modules.scale
        written = model.W_O(layer).detach().double()
        scale = getattr(modules.attn_out, "lambda1", None)
        parts["W_O"].append(written if scale is None else written * scale.detach().double())
    return Folded(**{name: torch.stack(weights) for name, weights in parts.items()})


def _behind_norm(model: HookedModel, norm: nn.Module | None, weight: Tensor) -> Tensor:
    """What [.., d_model, n] does to the stream in front of a norm, up to the norm's scale."""
    if norm is None:
        return weight
    weight = weight * model.norm_weight(norm).detach().double()[:, None]
    return weight - weight.mean(-2, keepdim=True) if model.cfg.norm == "ln" else weight


def _normed_embedding(model: HookedModel, n_vocab: int) -> Tensor:
    """Embeddings as a norm leaves them but for its weights: centred (LayerNorm), root mean square 1; float64 [n, d_model]."""
    weight = cast(Tensor, model.structure.embed.weight).detach()[: n_vocab or None].double()
    if model.cfg.norm == "ln":
        weight = weight - weight.mean(-1, keepdim=True)
    return weight / weight.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Of left · right, [.., d, e] and [.., e, d] with e ≤ d: those of an e × e product, largest first, [.., e]."""
    return torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT)


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of singular values [.., e] as shares of their sum (Roy & Vetterli 2007)."""
    share = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    return (-torch.special.xlogy(share, share).sum(-1)).exp()


def eigen_score(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """Σ Re λ / Σ |λ| over the eigenvalues of X · left · right · Y with Y · X = middle [d, d]; in −1 … 1, [..].

    Eigenvalues of X·left·right·Y that are not 0 are those of right · middle · left, e × e.
    """
    found = torch.linalg.eigvals(right @ middle @ left)
    return found.real.sum(-1) / found.abs().sum(-1).clamp_min(1e-300)


def top_pairs(rows: Tensor, columns: Tensor, n: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest entries of rows · columnsᵀ, [A, e] and [B, e]: values, row and column, a chunk of rows at a time."""
    best = rows.new_empty(0)
    places = torch.empty(0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), chunk):
        part = (rows[start : start + chunk] @ columns.T).flatten()
        values, at = part.topk(min(n, len(part)))
        best, places = torch.cat([best, values]), torch.cat([places, at + start * len(columns)])
        order = best.topk(min(n, len(best))).indices
        best, places = best[order], places[order]
    return best, places // len(columns), places % len(columns)


def composition(weights: Folded, layer: int, other: int) -> dict[str, Tensor]:
    """How much heads of `other` (earlier) write into what heads of `layer` read, float64 [head of layer, head of other].

    Elhage et al.'s ratios ‖W_OV¹ · M‖ / (‖W_OV¹‖ · ‖M‖) in Frobenius norms, M = W_QK ("q"), W_QKᵀ ("k"), W_OV ("v").
    """
    W_O = weights.W_O[other]
    writes = torch.linalg.qr(weights.W_V[other]).R  # [h, e, e]: ‖W_V · X‖ = ‖R · X‖
    size = _frobenius(writes @ W_O)
    here = {
        "q": (weights.W_Q[layer], weights.W_K[layer].mT),
        "k": (weights.W_K[layer], weights.W_Q[layer].mT),
        "v": (weights.W_V[layer], weights.W_O[layer]),
    }
    found = {}
    for kind, (reads, onward) in here.items():
        right = torch.linalg.qr(onward.mT).R.mT  # [H, e, e]
        between = torch.einsum("hed,Hdf->Hhef", writes @ W_O, reads) @ right[:, None]
        found[kind] = _frobenius(between) / (_frobenius(reads @ right)[:, None] * size).clamp_min(1e-300)
    return found


def _frobenius(matrix: Tensor) -> Tensor:
    return matrix.flatten(-2).norm(dim=-1)


def random_composition(model: HookedModel, config: WeightsConfig) -> np.ndarray:
    """The same ratio of heads of normal random weights of this shape, float64 [n_random]: what no composition looks like."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (2, config.n_random, model.cfg.d_model, model.cfg.d_head)
    W_V, W_O = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn = Folded(W_V, W_V, W_V, W_O.mT)
    return composition(drawn, 1, 0)["v"].diagonal().numpy()


@dataclass(frozen=True)
class HeadWeights(Result):
    """What the weights of every head say.

    Attributes:
        scores: name → float64 [layer, head]; copying and matching are NaN where there are no tokens.
        spectra: "ov", "qk" → singular values float64 [layer, head, d_head].
        pairs: rows of table head_token_pairs.
        ratios: rows of table head_composition.
        random: composition of random heads, float64 [n_random].
    """

    kind: ClassVar[str] = "head_weights"

    scores: dict[str, np.ndarray]
    spectra: dict[str, np.ndarray]
    pairs: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    random: np.ndarray
    config: WeightsConfig
    about: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, pa.Table]:
        layers, heads = self.scores["ov_rank"].shape
        columns: dict[str, Any] = {name: values.ravel() for name, values in self.scores.items()}
        columns |= {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        columns |= {
            f"{name}_singular": list(values.reshape(layers * heads, -1)) for name, values in self.spectra.items()
        }
        return {
            "head_weights": HEAD_WEIGHTS.table(columns),
            "head_token_pairs": HEAD_TOKEN_PAIRS.table(self.pairs),
            "head_composition": HEAD_COMPOSITION.table(self.ratios),
        }

    def plot(self, x: str = "copying", y: str = "matching", colour: str = "ov_rank") -> Any:
        """Scatter of all heads by two scores, coloured by a third."""
        layers, heads = self.scores["ov_rank"].shape
        names = [f"{layer}.{head}" for layer in range(layers) for head in range(heads)]
        return scatter({name: values.ravel() for name, values in self.scores.items()}, names, x, y, colour)

    def summary(self) -> dict[str, Any]:
        """Headline numbers, and the strongest composition of each kind."""
        found: dict[str, Any] = {**self.about, "random_composition": float(self.random.mean())}
        found["random_composition_sd"] = float(self.random.std(ddof=1))
        copying = self.scores["copying"]
        if not np.isnan(copying).all():
            layer, head = np.unravel_index(np.nanargmax(copying), copying.shape)
            found["top_copying_head"] = f"{layer}.{head}"
        for kind in KINDS:
            if self.ratios:
                name = f"{kind}_composition"
                row = max(self.ratios, key=lambda row: row[name])
                ends = f"{row['from_layer']}.{row['from_head']} → {row['layer']}.{row['head']}"
                found[f"top_{kind}_composition"] = {"heads": ends, "ratio": row[name]}
        return found


@torch.no_grad()
def head_weights(model: AnyModel, config: WeightsConfig | None = None, track: Track = no_track) -> HeadWeights:
    """Read what every head is by its weights.

    Args:
        model: of any supported family; QK of rotary models is at distance 0, and a ViT has no tokens: singular values and
            composition alone.

    Memory: chunk × n_vocab scores at a time.

    Raises:
        UnsupportedModelError: a model with norms of queries and keys or behind its sub-layers, which no such form holds, or a
            pruned one that lacks heads.

    Example:
        >>> from attlas.analyses.heads import head_weights, WeightsConfig
        >>> found = head_weights(model, WeightsConfig(n_vocab=64, n_pairs=2))
        >>> found.scores["copying"].shape  # [layer, head]
        (4, 6)
        >>> len(found.ratios) == 6 * 6 * (3 + 2 + 1)  # every head and every earlier layer's
        True
    """
    config, model = config or WeightsConfig(), as_hooked(model)
    model.require_plain("weights of heads", "qk_norm", "post_norm")
    refuse_absent_heads(model)
    weights = folded(model)
    spectra = {
        "ov": singular_values(weights.W_V, weights.W_O),
        "qk": singular_values(weights.W_Q, weights.W_K.mT),
    }
    scores = {f"{name}_rank": effective_rank(values) for name, values in spectra.items()}
    scores |= {f"{name}_norm": values.norm(dim=-1) for name, values in spectra.items()}
    scores |= {name: torch.full_like(scores["ov_rank"], torch.nan) for name in ("copying", "matching")}
    pairs: list[dict[str, Any]] = []
    if model.cfg.family != "vit":
        pairs = _of_tokens(model, weights, config, scores, track)
    random = random_composition(model, config)
    ratios = []
    for layer in track(range(1, model.cfg.n_layers), "composition"):
        for other in range(layer):
            found = composition(weights, layer, other)
            for head, from_head in np.ndindex(*found["q"].shape):
                row = {"layer": layer, "head": head, "from_layer": other, "from_head": from_head}
                row |= {f"{kind}_composition": float(found[kind][head, from_head]) for kind in KINDS}
                ratios.append({**row, "random": float(random.mean())})
    about = {"n_heads": weights.W_Q.shape[0] * weights.W_Q.shape[1], "positional": model.cfg.positional}
    as_numpy = {name: values.cpu().numpy() for name, values in scores.items()}
    shown = {name: values.cpu().numpy() for name, values in spectra.items()}
    return HeadWeights(as_numpy, shown, pairs, ratios, random, config, about)


def _of_tokens(
    model: HookedModel, weights: Folded, config: WeightsConfig, scores: dict[str, Tensor], track: Track
) -> list[dict[str, Any]]:
    """Fills copying and matching; returns the strongest pairs of tokens."""
    embedding = _normed_embedding(model, 0)
    unembedding = None
    if model.has_head:
        unembedding = _behind_norm(model, model.final_norm, model.W_U.detach().double())
        n = min(len(embedding), unembedding.shape[1])  # tables may be padded
        scores["copying"] = eigen_score(weights.W_V, unembedding[:, :n] @ embedding[:n], weights.W_O)
    scores["matching"] = eigen_score(weights.W_Q, embedding.T @ embedding, weights.W_K.mT)
    some = embedding[: config.n_vocab or None].float()
    rows = []
    for layer in track(range(model.cfg.n_layers), "token pairs"):
        for head in range(model.cfg.n_heads):
            W_Q, W_K, W_V = (w[layer, head].float() for w in (weights.W_Q, weights.W_K, weights.W_V))
            ends = {"qk": (some @ W_Q, some @ W_K)}
            if unembedding is not None:
                written = weights.W_O[layer, head].float() @ unembedding[:, : config.n_vocab or None].float()
                ends["ov"] = (some @ W_V, written.T)
            for circuit, (source, target) in ends.items():
                found = top_pairs(source, target, config.n_pairs, config.chunk)
                for rank, (value, a, b) in enumerate(zip(*(part.tolist() for part in found), strict=True)):
                    row = {"layer": layer, "head": head, "circuit": circuit, "rank": rank, "pair_value": value}
                    rows.append({**row, "from_token": a, "to_token": b})
    ids = sorted({row[end] for row in rows for end in ("from_token", "to_token")})
    texts = [f"[{i}]" for i in ids] if model.tokenizer is None else model.to_str_tokens(ids)
    text = dict(zip(ids, texts, strict=True))
    return [{**row, **{f"{end}_text": text[row[f"{end}_token"]] for end in ("from", "to")}} for row in rows]

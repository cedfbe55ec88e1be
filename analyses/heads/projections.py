"""What heads compare and move, in a few dimensions: queries, keys, values and answers of pairs drawn by weight.

A pair of query and key is drawn with the chance that its weight gives it (Efraimidis & Spirakis 2006: the largest of
log w − log e, e exponential, are a sample without replacement, and a stream can keep them). The axes are not the sample's:
they are the principal components of all positions behind the first, from covariances summed as the corpus goes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import Head
from attlas.analyses.heads.config import ProjectConfig
from attlas.analyses.heads.projection_tables import HEAD_AXES, HEAD_MAPS, HEAD_POINTS, VECTORS
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, Attended, HookedModel, as_hooked
from attlas.interp.attended import refuse_absent_heads


@dataclass
class _Layer:
    """What is known of a layer so far: the drawn pairs, and the moments of all vectors.

    Attributes:
        order: float [H, n], what ranks pairs; places: int64 [H, n, 3], (sequence, query, key); weights: float [H, n].
        drawn: kind → float32 [H, n, d_head].
        shift: kind → [heads, d_head], what sums are taken around; sums, products: float64 [heads, d_head (, d_head)].
    """

    order: Tensor
    places: Tensor
    weights: Tensor
    drawn: dict[str, Tensor]
    shift: dict[str, Tensor]
    sums: dict[str, Tensor]
    products: dict[str, Tensor]
    n: int

    def add(self, more: _Layer, most: int) -> None:
        """Take another batch in; its shift is this one's."""
        order = torch.cat([self.order, more.order], 1)
        self.order, at = order.topk(min(most, order.shape[1]), 1)
        self.places = _pick(torch.cat([self.places, more.places], 1), at)
        self.weights = torch.cat([self.weights, more.weights], 1).gather(1, at)
        self.drawn = {name: _pick(torch.cat([self.drawn[name], more.drawn[name]], 1), at) for name in self.drawn}
        for name in self.sums:
            self.sums[name] += more.sums[name]
            self.products[name] += more.products[name]
        self.n += more.n

    def axes(self, name: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [heads, d_head], the first n components [heads, d_head, n] and shares of variance [heads, n], float64.

        A component's largest entry is positive, so that the same data give the same signs.
        """
        centre = self.sums[name] / self.n
        covariance = self.products[name] / self.n - centre[:, :, None] * centre[:, None]
        values, components = torch.linalg.eigh(covariance)
        values, components = values.flip(-1).clamp(min=0), components.flip(-1)[..., :n]
        peak = components.gather(1, components.abs().argmax(1, keepdim=True))
        share = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
        return centre + self.shift[name].double(), components * peak.sign(), share[:, :n]


def _pick(values: Tensor, at: Tensor) -> Tensor:
    """values [H, n, c] at [H, m]."""
    return values.gather(1, at[:, :, None].expand(-1, -1, values.shape[-1]))


@dataclass(frozen=True)
class HeadProjections(Result):
    """Drawn pairs of every head, and their vectors on principal axes.

    Attributes:
        places: int64 [layer, head, n, 3], (sequence, query, key) of each pair; weights: float [layer, head, n].
        axes: kind → float32 [layer, head, n, n_axes], coordinates.
        shares: kind → float64 [layer, head, n_axes], shares of the variance.
        maps: (layer, head) → kind → float64 [n, 2], of the heads that have one.
        tokens: text of the pairs' tokens, [layer][head][n] pairs; empty of images.
        n_positions: that the axes are of.
    """

    kind: ClassVar[str] = "head_points"

    places: np.ndarray
    weights: np.ndarray
    axes: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    maps: dict[Head, dict[str, np.ndarray]]
    tokens: dict[tuple[int, int], str]
    n_positions: int
    config: ProjectConfig
    about: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, pa.Table]:
        found = {
            "head_points": HEAD_POINTS.table(self._point_columns()),
            "head_axes": HEAD_AXES.table(
                [
                    {"layer": layer, "head": head, "vectors": name, "axes_share": share[layer, head],
                     "n_positions": self.n_positions}
                    for layer, head in np.ndindex(self.weights.shape[:2])
                    for name, share in self.shares.items()
                ]
            ),
        }  # fmt: skip
        if self.maps:
            found["head_maps"] = HEAD_MAPS.table(list(self._map_rows()))
        return found

    def _point_columns(self) -> dict[str, Any]:
        layer, head, point = (axis.ravel() for axis in np.indices(self.weights.shape))
        sequence, query, key = self.places.reshape(-1, 3).T
        found: dict[str, Any] = {"layer": layer, "head": head, "point": point, "sequence": sequence}
        found |= {"query_at": query, "key_at": key, "pair_weight": self.weights.ravel()}
        for end, at in (("query", query), ("key", key)):
            where = zip(sequence.tolist(), at.tolist(), strict=True)
            found[f"{end}_token"] = [self.tokens.get(place, "") for place in where]
        for name in VECTORS:
            values = self.axes.get(name)
            flat: list[Any] = [[]] * len(layer) if values is None else list(values.reshape(len(layer), -1))
            found[f"{name}_axes"] = flat
        return found

    def _map_rows(self) -> Iterator[dict[str, Any]]:
        for (layer, head), kinds in self.maps.items():
            for name, values in kinds.items():
                for point, (x, y) in enumerate(values.tolist()):
                    row = {"layer": layer, "head": head, "vectors": name, "point": point}
                    yield {**row, "map_x": x, "map_y": y}

    def plot(self, layer: int = 0, head: int = 0, of: str = "q") -> Any:
        """The drawn pairs of one head on the first two axes of one kind of vector."""
        import plotly.graph_objects as go

        values = self.axes[of][layer, head]
        end = 1 if of[0] in "qz" else 2
        sequence, at = self.places[layer, head, :, 0].tolist(), self.places[layer, head, :, end].tolist()
        text = [self.tokens.get(place, str(place[1])) for place in zip(sequence, at, strict=True)]
        second = values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))
        figure = new_figure(go.Scatter(x=values[:, 0], y=second, text=text, mode="markers", marker={"color": at}))
        share = [f"{share:.0%}" for share in self.shares[of][layer, head]]
        figure.update_layout(title=f"{VECTORS[of]}, head {layer}.{head}", xaxis_title=f"component 1 ({share[0]})")
        return figure.update_yaxes(title="component 2" + (f" ({share[1]})" if len(share) > 1 else ""))

    def summary(self) -> dict[str, Any]:
        """How many pairs there are, and how much of the variance the axes hold on average."""
        found: dict[str, Any] = {**self.about, "n_heads": int(np.prod(self.weights.shape[:2]))}
        found |= {"n_points": int(self.weights.size), "n_positions": self.n_positions, "map": self.config.map}
        return found | {f"{name}_share": float(share.sum(-1).mean()) for name, share in self.shares.items()}


@torch.no_grad()
def head_projections(
    model: AnyModel,
    data: TokenDataset | ImageDataset,
    config: ProjectConfig | None = None,
    track: Track = no_track,
) -> HeadProjections:
    """Draw pairs of query and key of every head by weight, and project their vectors.

    Memory: n_points vectors of each kind and head, a d_head² covariance each, and n_rows × T weights of a layer and batch.

    Raises:
        ConfigError: sequences of one token, or a map whose library is not installed.
        UnsupportedModelError: a pruned model that lacks heads.

    Example:
        >>> from attlas.analyses.heads import ProjectConfig, head_projections
        >>> found = head_projections(model, text, ProjectConfig(n_points=5, n_axes=2))
        >>> found.axes["k"].shape  # [layer, head, pair, component]
        (4, 6, 5, 2)
    """
    config, model = config or ProjectConfig(), as_hooked(model)
    embed, _ = _map_maker(config), _mapped_heads(model, config)
    refuse_absent_heads(model)
    model.require_plain("projections of heads", "sinks")
    layers: list[_Layer] = []
    generator = torch.Generator().manual_seed(config.seed)
    done = 0
    for batch in track(data.batches(config.batch_size), "projections"):
        for index, vectors in enumerate(_vectors(model, batch)):
            known = layers[index] if done else None
            found = _read_layer(model, index, vectors, done, config, generator, known)
            if known is None:
                layers.append(found)
            else:
                known.add(found, config.n_points)
        done += len(batch)
    kinds = list(layers[0].drawn)
    axes: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    shares: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for layer in layers:
        for name in kinds:
            mean, components, share = (_for_heads(part, model) for part in layer.axes(name, config.n_axes))
            axes[name].append(((layer.drawn[name].double() - mean[:, None]) @ components).float().cpu().numpy())
            shares[name].append(share.cpu().numpy())
    mapped = [] if embed is None else _mapped_heads(model, config)
    maps = {
        (at, head): {name: embed(values[head].cpu().numpy()) for name, values in layers[at].drawn.items()}
        for at, head in track(mapped, "maps of heads")
    }
    places = torch.stack([layer.places for layer in layers]).cpu().numpy()
    weights = torch.stack([layer.weights for layer in layers]).cpu().numpy()
    together = {name: np.stack(parts) for name, parts in axes.items()}
    of = {name: np.stack(parts) for name, parts in shares.items()}
    texts, about = _texts(model, data, places)
    return HeadProjections(places, weights, together, of, maps, texts, layers[0].n, config, about)


def _vectors(model: HookedModel, batch: Tensor) -> Iterator[dict[str, Tensor]]:
    """Of each layer: kind → [B, T, heads, d_head]."""
    hooks = {"q": "q", "k": "k", "v": "v", "z": "z"}
    if model.cfg.positional == "rotary":
        hooks |= {"q_rotated": "rot_q", "k_rotated": "rot_k"}
    cache = model.capture(batch.to(model.device), [f"blocks.*.attn.hook_{hook}" for hook in hooks.values()])
    for layer in range(model.cfg.n_layers):
        yield {name: cache.pop(f"blocks.{layer}.attn.hook_{hook}").float() for name, hook in hooks.items()}


def _read_layer(
    model: HookedModel,
    index: int,
    vectors: dict[str, Tensor],
    first_sequence: int,
    config: ProjectConfig,
    generator: torch.Generator,
    known: _Layer | None,
) -> _Layer:
    q, k = (vectors.get(f"{name}_rotated", vectors[name]).transpose(1, 2) for name in "qk")
    batch, heads, n_tokens, _ = q.shape
    if n_tokens < 2:
        raise ConfigError("sequences of one token have no pairs to draw; give longer ones")
    queries = (torch.rand(batch, n_tokens - 1, generator=generator).argsort(1)[:, : config.n_rows] + 1).to(q.device)
    weights = Attended(index, q, k, model.layers[index].rule).of_queries(queries)  # [B, H, R, T]
    if not config.sink:
        weights[..., 0] = 0
    order, at, found = draw(weights.transpose(0, 1).flatten(1), config.n_points, generator)
    row, key = at // n_tokens, at % n_tokens
    sequence, query = row // queries.shape[1], queries.flatten()[row]
    head = torch.arange(heads, device=q.device)[:, None]
    drawn = {}
    for name, values in vectors.items():
        position = query if name[0] in "qz" else key
        drawn[name] = values[sequence, position, head // (heads // values.shape[2])]
    moments = _moments(vectors, {} if known is None else known.shift)
    places = torch.stack([sequence + first_sequence, query, key], -1)
    return _Layer(order, places, found, drawn, *moments, batch * (n_tokens - 1))


def draw(weights: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A sample without replacement by weight of each row [H, m].

    Returns: what ranks it, places, and weights, [H, min(n, m)] each; what has no weight ranks last (−inf).
    """
    chance = torch.empty(weights.shape).exponential_(generator=generator).to(weights.device)
    order, at = (weights.log() - chance.clamp_min(1e-30).log()).topk(min(n, weights.shape[1]), 1)
    return order, at, weights.gather(1, at)


def _moments(
    vectors: dict[str, Tensor], shift: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What sums are taken around (the first batch's mean), sums, and products, of all positions behind the first."""
    sums, products, around = {}, {}, dict(shift)
    for name, values in vectors.items():
        flat = values[:, 1:].flatten(0, 1).transpose(0, 1)  # [heads, n, d_head]
        around.setdefault(name, flat.mean(1))
        flat = (flat - around[name][:, None]).double()
        sums[name], products[name] = flat.sum(1), flat.mT @ flat
    return around, sums, products


def _for_heads(of: Tensor, model: HookedModel) -> Tensor:
    """What is known of kv heads, for every query head."""
    return of.repeat_interleave(model.cfg.n_heads // of.shape[0], 0)


def _mapped_heads(model: HookedModel, config: ProjectConfig) -> list[Head]:
    """The heads that get a map.

    Raises:
        ConfigError: a name that is none of the model's heads.
    """
    every = {f"{at}.{head}": (at, head) for at, head in np.ndindex(model.cfg.n_layers, model.cfg.n_heads)}
    for name in config.map_heads:
        if name not in every:
            raise ConfigError(f"'{name}' is no head of {model.name}; its heads are 0.0 to {list(every)[-1]}")
    return [every[name] for name in config.map_heads or every]


def _map_maker(config: ProjectConfig) -> Any:
    """A function from vectors [n, d_head] to places [n, 2], or None."""
    if config.map == "none":
        return None
    if config.map == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise ConfigError(
                "map 'umap' needs umap-learn, which is not installed; pip install umap-learn, or map 'tsne'"
            ) from None
        return lambda x: UMAP(random_state=config.seed).fit_transform(x).astype(np.float64)
    from sklearn.manifold import TSNE

    def tsne(x: np.ndarray) -> np.ndarray:
        if len(x) < 3:
            raise ConfigError(f"a t-SNE map needs 3 pairs a head, not {len(x)}; raise n_points")
        perplexity = min(30.0, (len(x) - 1) / 3)
        found: np.ndarray = TSNE(perplexity=perplexity, random_state=config.seed).fit_transform(x).astype(np.float64)
        return found

    return tsne


def _texts(
    model: HookedModel, data: TokenDataset | ImageDataset, places: np.ndarray
) -> tuple[dict[tuple[int, int], str], dict[str, Any]]:
    """Text of the tokens of drawn pairs by (sequence, position), and of images their grid."""
    if isinstance(data, ImageDataset):
        grid = [side // model.cfg.patch_size for side in data.pixels.shape[-2:]]
        return {}, {"grid": grid, "n_prefix": model.cfg.n_prefix_tokens}
    flat = places.reshape(-1, 3)
    wanted = sorted({(s, at) for s, query, key in flat.tolist() for at in (query, key)})
    ids = [int(data.tokens[s, at]) for s, at in wanted]
    texts = [f"[{i}]" for i in ids] if model.tokenizer is None else model.to_str_tokens(ids)
    return dict(zip(wanted, texts, strict=True)), {}

"""Steering: text under a change of features or heads, beside the model's own and that under a random direction as long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.steering.changes import Steering
from attlas.analyses.steering.config import SteerConfig
from attlas.analyses.steering.generate import generate
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_ratio
from attlas.data.text import TokenDataset
from attlas.errors import PromptError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.base import SAE

VARIANTS = ("unsteered", "steered", "random direction")
Interval = tuple[float, float, float]
_F = pa.float64()
_OVER = "over sequences (bootstrap-t)"
VARIANT = column("variant", pa.string(), "", "unsteered, steered, or random direction (control: a change as long)")
STEERING = TableSchema(
    "steering",
    "one text",
    (
        VARIANT,
        column("generated", pa.string(), "", "what was generated after the prompt"),
        column("prompt_kl", _F, "nats", "KL of the next token from the unsteered model, mean over the prompt"),
        column("prompt_delta_ce", _F, "nats", "loss on the prompt's tokens less the unsteered"),
        column("corpus_kl", _F, "nats", "that KL over the corpus; null without one"),
        column("corpus_kl_low", _F, "nats", f"its 95 % interval {_OVER}, lower end"),
        column("corpus_kl_high", _F, "nats", "its upper end"),
        column("corpus_delta_ce", _F, "nats", "loss on the corpus less the unsteered; null without one"),
        column("corpus_delta_ce_low", _F, "nats", f"its 95 % interval {_OVER}, lower end"),
        column("corpus_delta_ce_high", _F, "nats", "its upper end"),
    ),
)
STEERING_TOKENS = TableSchema(
    "steering_tokens",
    "one generated token of one text",
    (
        VARIANT,
        column("place", pa.int32(), "", "among the generated tokens, from 0"),
        column("generated_token", pa.string(), "", "its text"),
        column("probability", _F, "probability", "it had when it was taken"),
    ),
)
SCHEMAS = (STEERING, STEERING_TOKENS)


@dataclass(frozen=True)
class Steered:
    """One text, and how far the change moves the model.

    Attributes:
        variant: unsteered, steered, or random direction.
        ids, tokens, probabilities: what was generated, and how likely each token was when it was taken.
        prompt: (KL, ΔCE) in nats, on the prompt; NaN for a prompt of one token.
        corpus: ((KL, low, high), (ΔCE, low, high)) in nats, or None.
    """

    variant: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    prompt: tuple[float, float]
    corpus: tuple[Interval, Interval] | None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True)
class SteeringResult(Result):
    """The three texts, in the order of VARIANTS.

    Attributes:
        prompt: its tokens as text.
        about: what else is recorded of the change (the autoencoder's hook).
    """

    kind: ClassVar[str] = "steering"

    prompt: tuple[str, ...]
    texts: tuple[Steered, ...]
    config: SteerConfig
    about: dict[str, Any]

    def tables(self) -> dict[str, pa.Table]:
        rows, tokens = [], []
        for t in self.texts:
            kl, ce = t.corpus or ((None,) * 3, (None,) * 3)
            prompt = [value if np.isfinite(value) else None for value in t.prompt]
            row: dict[str, Any] = {"variant": t.variant, "generated": t.text}
            row |= dict(zip(("prompt_kl", "prompt_delta_ce"), prompt, strict=True))
            row |= dict(zip(("corpus_kl", "corpus_kl_low", "corpus_kl_high"), _known(kl), strict=True))
            names = ("corpus_delta_ce", "corpus_delta_ce_low", "corpus_delta_ce_high")
            rows.append(row | dict(zip(names, _known(ce), strict=True)))
            for i, (token, p) in enumerate(zip(t.tokens, t.probabilities, strict=True)):
                tokens.append({"variant": t.variant, "place": i, "generated_token": token, "probability": p})
        return {"steering": STEERING.table(rows), "steering_tokens": STEERING_TOKENS.table(tokens)}

    def summary(self) -> dict[str, Any]:
        """The prompt, the change, the texts, and how far the change and its control move the model."""
        told: dict[str, Any] = {"prompt": "".join(self.prompt), "mode": self.config.mode}
        told |= {"strength": self.config.strength}
        told |= {"changed": [*(f"#{f}" for f in self.config.features), *self.config.heads]}
        for t, name in zip(self.texts, ("unsteered", "steered", "random"), strict=True):
            told[f"text_{name}"] = t.text
            if name == "unsteered":
                continue
            pairs = [(f"prompt_kl_{name}", t.prompt[0]), (f"prompt_delta_ce_{name}", t.prompt[1])]
            if t.corpus is not None:
                for what, interval in zip(("kl", "delta_ce"), t.corpus, strict=True):
                    pairs += zip((f"{what}_{name}{end}" for end in ("", "_low", "_high")), interval, strict=True)
            told |= {key: value for key, value in pairs if np.isfinite(value)}
        return told

    def plot(self) -> Any:
        """Probability of each token as it was taken, of the three texts."""
        figure = new_figure()
        for t in self.texts:
            figure.add_scatter(y=t.probabilities, text=t.tokens, name=t.variant)
        return figure

    def _recorded_config(self) -> Any:
        return {**self.about, **vars(self.config), "prompt": list(self.prompt)}


def _known(values: tuple[float | None, ...]) -> list[float | None]:
    return [value if value is not None and np.isfinite(value) else None for value in values]


def steer(
    model: AnyModel,
    prompt: str | Tensor,
    config: SteerConfig,
    sae: SAE | None = None,
    data: TokenDataset | None = None,
    *,
    hook: str | None = None,
    track: Track = no_track,
) -> SteeringResult:
    """Generate under a change, and measure how far it moves the model.

    KL and loss are measured with the change at every position but the first, whatever `positions` says of generation.

    Args:
        model: a language model, or anything `as_hooked` takes.
        prompt: a text, or token ids int64 [T].
        sae: whose features are changed.
        data: a corpus to measure on; its first `n_rows` sequences are taken. None measures on the prompt alone.
        hook: where the autoencoder sits; by default the hook it was trained on.

    Raises:
        UnsupportedModelError: a vision model or a backbone.
        PromptError: an empty prompt, or one that fills the context window.
        ConfigError: no such feature or head, or features without an autoencoder.
        NonFiniteError: the change drives the model to NaN.

    Example:
        >>> from attlas.analyses.steering import SteerConfig, steer
        >>> found = steer(model, "the white whale", SteerConfig(features=(3,), strength=50.0, n_new=4), sae)
        >>> [t.variant for t in found.texts]
        ['unsteered', 'steered', 'random direction']
        >>> found.texts[0].prompt[0], found.texts[1].prompt[0] > 0
        (0.0, True)
    """
    model = as_hooked(model)
    model.require_language_model()
    tokens = (model.to_tokens(prompt) if isinstance(prompt, str) else prompt).reshape(-1)
    if not 0 < len(tokens) < model.cfg.n_ctx:
        raise PromptError(f"the prompt has {len(tokens)} tokens; give 1 to {model.cfg.n_ctx - 1}")
    hook = hook or (sae.cfg.hook_name if sae is not None else "") or ""
    changes = [None, *(Steering(model, sae, hook, config, random) for random in (False, True))]
    texts: list[tuple[list[int], list[float]]] = []
    for name, change in track(list(zip(VARIANTS, changes, strict=True)), "generating"):
        track.news(name)
        texts.append(generate(model, tokens, config, change))
    on_prompt = _moved(model, [tokens[None]], [None], changes, track, "prompt")
    on_corpus = None
    if data is not None:
        taken = data.take(min(config.n_rows, len(data.tokens)))
        rows = taken.tokens.split(config.batch_size)
        masks = taken.mask.split(config.batch_size) if taken.mask is not None else [None] * len(rows)
        on_corpus = _moved(model, rows, masks, changes, track, "corpus")
    found = []
    for i, (variant, (ids, probabilities)) in enumerate(zip(VARIANTS, texts, strict=True)):
        kl, ce, n_kl, n_ce = on_prompt[i]
        near = (float(kl.sum() / n_kl.sum()), float(ce.sum() / n_ce.sum()) if n_ce.sum() else float("nan"))
        corpus = None if on_corpus is None else _intervals(config.seed, *on_corpus[i])
        words = model.to_str_tokens(ids) if model.tokenizer is not None else [f" {id}" for id in ids]
        found.append(Steered(variant, tuple(ids), tuple(words), tuple(probabilities), near, corpus))
    shown = model.to_str_tokens(tokens) if model.tokenizer is not None else [f" {id}" for id in tokens.tolist()]
    about = {"hook": hook} if config.features else {}
    return SteeringResult(tuple(shown), tuple(found), config, about)


Sums = list[np.ndarray]  # of KL, of the loss's change, and how many of each, [rows]


@torch.no_grad()
def _moved(
    model: HookedModel,
    batches: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    changes: Sequence[Steering | None],
    track: Track,
    what: str,
) -> list[Sums]:
    """Of each variant: sums over a sequence's positions of KL and of the change of the loss, and how many of each, [rows]."""
    parts: list[list[Sums]] = [[] for _ in changes]
    for tokens, mask in track(list(zip(batches, masks, strict=True)), what):
        tokens = tokens.to(model.device)
        text = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(model.device)
        plain = torch.log_softmax(model(tokens).float(), -1)
        for i, log_p in enumerate(_each(model, tokens, plain, changes)):
            kl = (plain.exp() * (plain - log_p)).sum(-1).clamp_min(0) * text
            gone = _loss(log_p, tokens) - _loss(plain, tokens)
            sums = (kl.sum(1), (gone * text[:, 1:]).sum(1), text.sum(1), text[:, 1:].sum(1))
            parts[i].append([s.double().cpu().numpy() for s in sums])
    return [[np.concatenate([p[j] for p in part]) for j in range(4)] for part in parts]


def _each(model: HookedModel, tokens: Tensor, plain: Tensor, changes: Sequence[Steering | None]) -> Iterator[Tensor]:
    for change in changes:
        if change is None:
            yield plain
            continue
        change.past, change.first = 0, 1
        with model.hooks(change.hooks):
            yield torch.log_softmax(model(tokens).float(), -1)


def _loss(log_p: Tensor, tokens: Tensor) -> Tensor:
    return -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)


def _intervals(
    seed: int, kl: np.ndarray, ce: np.ndarray, n_kl: np.ndarray, n_ce: np.ndarray
) -> tuple[Interval, Interval]:
    """Means over all tokens, with intervals over sequences."""

    def one(total: np.ndarray, n: np.ndarray) -> Interval:
        mean, low, high = bootstrap_ratio(total, n, seed=seed)
        return float(mean), float(low), float(high)

    return one(kl, n_kl), one(ce, n_ce)

"""Generation with a key-value cache, under a change or without."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from attlas.analyses.steering.changes import Steering
from attlas.analyses.steering.config import SteerConfig
from attlas.errors import NonFiniteError
from attlas.interp import HookedModel


@torch.no_grad()
def generate(
    model: HookedModel, prompt: Tensor, config: SteerConfig, steering: Steering | None
) -> tuple[list[int], list[float]]:
    """New tokens, and the probability each had when it was taken.

    Args:
        prompt: int64 [T].
        steering: the change; None generates without.

    Raises:
        NonFiniteError: the change drove the logits to NaN or infinity.
    """
    draw = torch.Generator().manual_seed(config.seed)
    stop = getattr(model.tokenizer, "eos_token_id", None)
    tokens: list[int] = []
    probabilities: list[float] = []
    piece, cache, past = prompt[None].to(model.device), None, 0
    most = min(config.n_new, model.cfg.n_ctx - len(prompt))
    if steering is not None:
        steering.first = max(1, len(prompt) - 1) if config.positions == "generated" else 1
    with model.hooks(steering.hooks) if steering is not None else nullcontext():
        while len(tokens) < most:
            if steering is not None:
                steering.past = past
            out = model.hf(input_ids=piece, past_key_values=cache, use_cache=True)
            past, cache = past + piece.shape[1], out.past_key_values
            logits = out.logits[0, -1].float()
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError(f"strength {config.strength:g} drives {model.name} to NaN; give less")
            token, probability = _take(logits, config.temperature, draw)
            tokens.append(token)
            probabilities.append(probability)
            if token == stop:
                break
            piece = torch.tensor([[token]], device=model.device)
    return tokens, probabilities


def _take(logits: Tensor, temperature: float, draw: torch.Generator) -> tuple[int, float]:
    """The likeliest token, or the one at a drawn place of the distribution, so that equal draws compare texts."""
    p = torch.softmax(logits.double() / (temperature or 1.0), -1).cpu()
    place = float(torch.rand(1, generator=draw))
    if temperature == 0:
        token = int(logits.argmax())
    else:
        token = min(int(torch.searchsorted(p.cumsum(0), torch.tensor(place, dtype=p.dtype))), len(p) - 1)
    return token, float(p[token])

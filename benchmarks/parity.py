"""Largest difference of every hook from TransformerLens's bridge and from Hugging Face eager attention, float32.

    python benchmarks/parity.py                      # embedded models
    python benchmarks/parity.py smollm2-135m dinov2-small

Prints a table per model; status 1 when any entry is above 1e-4 of the hook's own scale or 1e-4, whichever is larger.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attlas.data.images.dataset import default_images, load_images
from attlas.data.models_catalog import resolve_model
from attlas.interp import HookedModel, load_model

TOLERANCE = 1e-4
SENTENCE = "When Mary and John went to the store, John gave a drink to"
Pair = tuple[str, Tensor, Tensor]


def kind(name: str) -> str:
    """`blocks.3.attn.hook_z` → `attn.hook_z`."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def open_bridge(model: HookedModel) -> Any:
    """The bridge around the same weights, or None where TransformerLens has no adapter for the architecture."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = str(resolve_model(model.name).folder)
    try:
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    except ValueError as error:
        print(f"\n{model.name} has no bridge: {str(error).split('. Available')[0]} ({model.hf.config.model_type})")
        return None
    with contextlib.suppress(NotImplementedError):  # of vision models it gives none
        bridge.set_use_attn_result(True)
    return bridge


def against_bridge(model: HookedModel, bridge: Any, inputs: Tensor) -> Iterator[Pair]:
    """(hook, ours, theirs) for every name and shape the two have in common."""
    with torch.no_grad():
        logits, theirs = bridge.run_with_cache(inputs)
        our_logits, ours = model.run_with_cache(inputs, lambda name: True)
    yield "logits", our_logits, logits
    for name, value in ours.items():
        if name.endswith("hook_normalized"):
            continue  # ours hold the norm's weights, as HookedTransformer's do; the bridge's do not
        if name.endswith("hook_attn_scores") and torch.equal(
            theirs[name], theirs[name.replace("attn_scores", "pattern")]
        ):
            continue  # of vision models the bridge's hook of scores holds the pattern
        if name in theirs and theirs[name].shape == value.shape:
            allowed = torch.isfinite(value) & (theirs[name] > -1e4)  # masked scores are −inf here, −1e5 or so there
            yield name, value[allowed], theirs[name][allowed]


def against_eager(model: HookedModel, inputs: Tensor) -> Iterator[Pair]:
    """(hook, ours, theirs) for patterns and residuals, which eager Hugging Face models return."""
    folder = resolve_model(model.name).folder
    eager = type(model.hf).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = eager(inputs, output_attentions=True, output_hidden_states=True)
        output, ours = model.run_with_cache(inputs, ["*hook_pattern", "*hook_resid_pre"])
    yield "output", output, theirs.logits if hasattr(theirs, "logits") else theirs.last_hidden_state
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        yield name, ours[name], theirs.attentions[layer]
        name = f"blocks.{layer}.hook_resid_pre"
        yield name, ours[name], theirs.hidden_states[layer]


def worst(pairs: Iterator[Pair]) -> dict[str, tuple[int, float, float]]:
    """Hook → (layers compared, largest difference, largest magnitude)."""
    found: dict[str, tuple[int, float, float]] = {}
    for name, ours, theirs in pairs:
        n, difference, scale = found.get(kind(name), (0, 0.0, 0.0))
        here = float((ours - theirs).abs().max())
        found[kind(name)] = (n + 1, max(difference, here), max(scale, float(theirs.abs().max())))
    return found


def show(title: str, found: dict[str, tuple[int, float, float]]) -> bool:
    """Print one table; True when all is within tolerance."""
    print(f"\n{title}\n{'hook':28} {'compared':>8} {'max |difference|':>17} {'max |value|':>12}")
    good = True
    for name, (n, difference, scale) in sorted(found.items()):
        within = difference <= TOLERANCE * max(1.0, scale)
        good &= within
        print(f"{name:28} {n:8} {difference:17.1e} {scale:12.3g}{'' if within else '  ABOVE'}")
    return good


def main(names: list[str]) -> int:
    from transformers.utils import logging

    logging.disable_progress_bar()
    good = True
    for name in names:
        model = load_model(name, device="cpu")
        if model.cfg.family == "vit":
            inputs = load_images(default_images(model.image_spec), model.image_spec, n_images=4).pixels
        else:
            inputs = model.to_tokens(SENTENCE)
        if (bridge := open_bridge(model)) is not None:
            good &= show(f"{name} against TransformerBridge", worst(against_bridge(model, bridge, inputs)))
        good &= show(f"{name} against Hugging Face eager attention", worst(against_eager(model, inputs)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["gpt2-mini", "vit-mini"]))

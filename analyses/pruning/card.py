"""The model card of a pruned checkpoint: what is gone, how it was chosen, what it cost, how to open it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attlas.analyses.pruning.budget import kv_bytes_per_token, n_parameters
from attlas.analyses.pruning.surgery import compact_auto
from attlas.data.models_catalog import catalog
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, silent_parts
from attlas.interp.families import describe
from attlas.interp.pruned.modeling_attlas_pruned import NAMES, PREFIX, AbsentAttention, blocks_of
from attlas.interp.structure import linear_weight


def snippet(dense: Any, hf: Any, folder: str = "FOLDER") -> str:
    """Python that opens the checkpoint as the class it is; `dense` is the stock module that `hf` was made of."""
    compact = type(hf).__name__.startswith("Pruned")
    name = compact_auto(dense) or type(hf).__name__
    trust = ", trust_remote_code=True" if compact else ""
    return f"from transformers import {name}\n\nmodel = {name}.from_pretrained({folder!r}{trust})\n".replace("'", '"')


def sizes(model: HookedModel, hf: Any, dtype: torch.dtype) -> dict[str, int]:
    """Parameters, and bytes of KV cache a token in the dtype that is saved, before and after."""
    found = {"parameters_before": n_parameters(model.hf), "parameters_after": n_parameters(hf)}
    if model.cfg.causal:
        for key, module in (("kv_bytes_before", model.hf), ("kv_bytes_after", hf)):
            found[key] = kv_bytes_per_token(module) * dtype.itemsize // next(module.parameters()).dtype.itemsize
    return found


def heads_left(hf: Any, d_head: int) -> list[int]:
    """Query heads that each layer still has; 0 where attention is absent."""
    if (kind := hf.config.model_type.removeprefix(PREFIX)) not in NAMES:  # no compact form: heads are where they were
        return [linear_weight(parts.out_proj).shape[0] // d_head for parts in describe(hf).layers]
    attention = NAMES[kind][0]
    found = []
    for block in blocks_of(hf):
        module: Any = getattr(block, attention)
        if isinstance(module, AbsentAttention):
            found.append(0)
        else:
            weight = module.c_proj.weight if hasattr(module, "c_proj") else module.o_proj.weight.T
            found.append(weight.shape[0] // d_head)
    return found


def notes(model: HookedModel, hf: Any, drop: Drop) -> list[str]:
    """What became of the dropped parts, and of what was silent before, from the pruned model itself."""
    compact = type(hf).__name__.startswith("Pruned")
    whole = drop.with_silent(model)
    found = []
    if whole.blocks:
        found.append("Dropped layers are absent; the others are numbered anew.")
    if whole.attn or whole.mlp:
        found.append(
            "Attention and MLPs dropped alone are absent: no weights, no arithmetic, no KV cache."
            if compact
            else "Attention and MLPs dropped alone are silenced (zero output projection): they still cost time, weights "
            "and KV cache."
        )
    if whole.heads:
        cut = sum(model.cfg.n_heads - n for n in heads_left(hf, model.cfg.d_head) if n)
        if cut:
            found.append(f"{cut} of the {len(whole.heads)} dropped heads are cut out of the projections.")
        if silent := len(whole.heads) - cut:
            found.append(
                f"{silent} of the {len(whole.heads)} dropped heads are silenced (zero rows of the output projection): they "
                "still cost time and weights" + (", and KV cache." if model.cfg.causal else ".")
            )
    if not model.cfg.causal:
        found = [note.replace(", no KV cache", "").replace(", weights and KV cache", " and weights") for note in found]
    return found


def _listed(drop: Drop) -> list[str]:
    """Lines of a Markdown list, one a kind of part."""
    return [
        f"- {name}: {', '.join(map(str, value))}"
        for name, value in (
            ("attention of layers", drop.attn),
            ("MLP of layers", drop.mlp),
            ("whole layers", drop.blocks),
            ("heads (layer.head)", tuple(f"{layer}.{head}" for layer, head in drop.heads)),
        )
        if value
    ]


def card(
    model: HookedModel,
    hf: Any,
    drop: Drop,
    format: str,
    source: Path | None,
    facts: Mapping[str, Any],
) -> str:
    """README.md in Markdown, with the original's licence."""
    before = _listed(silent_parts(model))
    return "\n".join(
        [
            "---",
            _license(model, source),
            "library_name: transformers",
            "tags: [pruned, attlas]",
            "---",
            f"# {model.name}, pruned",
            f"From `{model.name}` (weights {model.weight_hash}), format {format}. {' '.join(notes(model, hf, drop))} "
            "Dropped, by the original's layer numbers from 0:",
            "",
            *_listed(drop),
            *(["", "Silent or absent in the original already:", "", *before] if before else []),
            "",
            "```python",
            snippet(model.hf, hf).rstrip(),
            "```",
            "",
            "| | |",
            "|---|---|",
            *[f"| {key} | {value} |" for key, value in facts.items()],
            "",
        ]
    )


def _license(model: HookedModel, source: Path | None) -> str:
    """The licence of the original: from its card, else from the catalogue."""
    if source is not None and (source / "README.md").is_file():
        text = (source / "README.md").read_text(encoding="utf-8")
        if line := next((line for line in text.splitlines() if line.startswith("license:")), None):
            return line
    known = {card.name: card.license for card in catalog()}
    return f"license: {known[model.name].lower()}" if model.name in known else "license: other"

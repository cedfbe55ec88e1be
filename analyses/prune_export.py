"""Write a pruned model as a checkpoint that transformers opens.

`stock`: blocks are removed and layers renumbered; a lone attention, MLP or head is silenced by a zero output projection
(loads anywhere, no faster). `compact`: lone attention and MLP modules are absent too; the checkpoint carries
`modeling_attlas_pruned.py` and needs `trust_remote_code=True`, or `load_pruned` below.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attlas.analyses.drop_selection import Drop
from attlas.data.files import fsync_dir
from attlas.errors import CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.interp.anatomy import linear_weight

FORMATS = ("stock", "compact")
MODELING = "modeling_attlas_pruned"
# stock class → (config, model, auto class) of the compact form
_COMPACT = {
    "GPT2LMHeadModel": ("PrunedGPT2Config", "PrunedGPT2LMHeadModel", "AutoModelForCausalLM"),
    "LlamaForCausalLM": ("PrunedLlamaConfig", "PrunedLlamaForCausalLM", "AutoModelForCausalLM"),
    "ViTForImageClassification": (
        "PrunedViTConfig",
        "PrunedViTForImageClassification",
        "AutoModelForImageClassification",
    ),
    "Dinov2Model": ("PrunedDinov2Config", "PrunedDinov2Model", "AutoModel"),
}
_COPIED = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "chat_template*", "preprocessor*", "LICENSE*")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the checkpoint.
        format: stock or compact.
        n_parameters: of the checkpoint, tied weights once.
        kept_attention: attention layers that hold a KV cache.
    """

    folder: Path
    format: str
    n_parameters: int
    kept_attention: int


def _shortened(hf: Any, blocks: tuple[int, ...]) -> Any:
    """A copy without these blocks, its config and cache slots renumbered."""
    from attlas.analyses.prune_modeling import blocks_of

    model = copy.deepcopy(hf)
    layers = blocks_of(model)
    for index in sorted(blocks, reverse=True):
        del layers[index]
    for index, block in enumerate(layers):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - an attribute nn.Module does not declare
    config = model.config
    config.num_hidden_layers = len(layers)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kind for index, kind in enumerate(kinds) if index not in blocks]
    return model


def _renumber(layers: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(layer - sum(block < layer for block in blocks) for layer in layers)


@torch.no_grad()
def _silence(model: HookedModel, hf: Any, drop: Drop) -> None:
    """Zero output projections in `hf`, a shortened copy of the model."""
    from attlas.interp.families import describe

    parts = describe(hf).layers
    d_head = model.cfg.d_head
    for layer in _renumber(drop.attn, drop.blocks):
        for parameter in parts[layer].out_proj.parameters():
            parameter.zero_()
    for layer in _renumber(drop.mlp, drop.blocks):
        last = [m for m in parts[layer].mlp.modules() if type(m).__name__ in ("Linear", "Conv1D")][-1]
        for parameter in last.parameters():
            parameter.zero_()
    for layer, head in drop.heads:
        if layer not in drop.blocks:
            (index,) = _renumber((layer,), drop.blocks)
            linear_weight(parts[index].out_proj)[head * d_head : (head + 1) * d_head] = 0


def _compact(hf: Any, drop: Drop) -> Any:
    """The same weights in a class that lacks the dropped modules."""
    from attlas.analyses import prune_modeling

    name = type(hf).__name__
    if name not in _COMPACT:
        raise UnsupportedModelError(f"{name} has no compact form (only {', '.join(_COMPACT)}); use format stock")
    config_name, model_name, auto = _COMPACT[name]
    if getattr(hf.config, "scale_attn_by_inverse_layer_idx", False):
        raise UnsupportedModelError("this GPT-2 scales attention by layer index, which pruning changes; use stock")
    values = hf.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "dtype"):
        values.pop(key, None)
    config = getattr(prune_modeling, config_name)(**values)
    config.dropped_attention = list(_renumber(drop.attn, drop.blocks))
    config.dropped_mlp = list(_renumber(drop.mlp, drop.blocks))
    config.auto_map = {"AutoConfig": f"{MODELING}.{config_name}", auto: f"{MODELING}.{model_name}"}
    model = getattr(prune_modeling, model_name)(config).to(next(hf.parameters()).dtype)
    missing, _ = model.load_state_dict(hf.state_dict(), strict=False)
    if missing:
        raise CheckpointError(f"the compact form lacks {len(missing)} weights, such as {missing[0]}")
    model.config.architectures = [model_name]
    return model


def _card(model: HookedModel, drop: Drop, format: str, source: Path | None, facts: Mapping[str, Any]) -> str:
    """README.md: what was dropped, how it was chosen, what it cost; the original's licence."""
    license_line = "license: other"
    if source is not None and (source / "README.md").is_file():
        text = (source / "README.md").read_text(encoding="utf-8")
        license_line = next((line for line in text.splitlines() if line.startswith("license:")), license_line)
    dropped = [
        f"- {name}: {', '.join(map(str, value))}"
        for name, value in (
            ("attention of layers", drop.attn),
            ("MLP of layers", drop.mlp),
            ("whole layers", drop.blocks),
            ("heads (layer, head)", drop.heads),
        )
        if value
    ]
    load = "needs `trust_remote_code=True`" if format == "compact" else "loads with stock transformers"
    if format == "stock" and (drop.attn or drop.mlp or drop.heads):
        load += "; the silenced modules are still computed, so they save no time and no cache"
    return "\n".join(
        [
            "---",
            license_line,
            "library_name: transformers",
            "---",
            f"# {model.name}, pruned",
            f"From `{model.name}` (weights {model.weight_hash}). Format {format}: {load}. Dropped, by the original's "
            "layer numbers from 0:",
            "",
            *dropped,
            "",
            "| | |",
            "|---|---|",
            *[f"| {key} | {value} |" for key, value in facts.items()],
            "",
        ]
    )


def export(
    model: HookedModel,
    drop: Drop,
    folder: str | Path,
    *,
    format: str = "compact",
    force: bool = False,
    source: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the pruned checkpoint; the folder appears whole or not at all.

    Args:
        model: the dense model; it is not changed.
        drop: what to leave out.
        folder: where to; must not exist or be empty, unless `force`.
        format: stock or compact.
        source: the dense model's folder: tokenizer, processor and licence are copied from it.
        facts: rows of the model card (scores, calibration hash, loss before and after).

    Raises:
        ConfigError: nothing or everything is dropped, or the folder is not empty.
        UnsupportedModelError: the model has no compact form, or shares KV layers.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ConfigError(f"format '{format}' is unknown; choose {', '.join(FORMATS)}")
    drop.check(model)
    if not drop:
        raise ConfigError("nothing to drop; name attention, MLP, blocks or heads")
    kept = model.cfg.n_layers - len(drop.blocks) - (len(drop.attn) if format == "compact" else 0)
    if kept < 1:
        raise ConfigError(f"all {model.cfg.n_layers} attention layers would go; keep at least one")
    if getattr(model.hf.config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"{model.name} shares KV layers; dropping one would starve another")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise ConfigError(f"'{folder}' is not empty; give a new folder or --force")
    hf = _shortened(model.hf, drop.blocks)
    _silence(model, hf, drop)
    if format == "compact" and (drop.attn or drop.mlp):
        hf = _compact(hf, drop)
    else:
        format = "stock"
    _write(hf, folder, format, source, _card(model, drop, format, source, facts or {}))
    return Exported(folder, format, sum(p.numel() for p in hf.parameters()), kept)


def _write(hf: Any, folder: Path, format: str, source: Path | None, card: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        hf.save_pretrained(temporary)
        if format == "compact":
            shutil.copyfile(Path(__file__).with_name("prune_modeling.py"), temporary / f"{MODELING}.py")
        for pattern in _COPIED if source is not None else ():
            for path in source.glob(pattern):  # type: ignore[union-attr]
                if path.is_file():
                    shutil.copyfile(path, temporary / path.name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        fsync_dir(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_pruned(folder: str | Path) -> Any:
    """Open a compact checkpoint with attlas's own copy of its code, so without trust_remote_code.

    Raises:
        CheckpointError: the folder is no compact checkpoint.
    """
    from attlas.analyses import prune_modeling

    try:
        name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        cls = {m: getattr(prune_modeling, m) for _, m, _ in _COMPACT.values()}[name]
    except (OSError, KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{folder}' is not a compact checkpoint ({error})") from error
    return cls.from_pretrained(folder, local_files_only=True).eval()

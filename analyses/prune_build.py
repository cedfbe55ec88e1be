"""Build the pruned model in memory: a Hugging Face module that shares nothing with the dense one.

`stock`: blocks are removed and layers renumbered; heads are cut out where the stock config can say so (the same number
in every layer, Llama and ViT families); a lone attention or MLP, and other heads, are silenced by a zero output projection,
which saves no time. `compact`: lone attention and MLP modules are absent and heads cut out, layer by layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attlas.analyses.drop_selection import Drop
from attlas.analyses.prune_heads import HeadPlan, narrow, plan_heads, silence_heads
from attlas.errors import CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.interp.anatomy import LayerParts

FORMATS = ("stock", "compact")
MODELING = "modeling_attlas_pruned"
# stock class → (config, model, auto class) of the compact form
COMPACT = {
    "GPT2LMHeadModel": ("PrunedGPT2Config", "PrunedGPT2LMHeadModel", "AutoModelForCausalLM"),
    "LlamaForCausalLM": ("PrunedLlamaConfig", "PrunedLlamaForCausalLM", "AutoModelForCausalLM"),
    "ViTForImageClassification": (
        "PrunedViTConfig",
        "PrunedViTForImageClassification",
        "AutoModelForImageClassification",
    ),
    "Dinov2Model": ("PrunedDinov2Config", "PrunedDinov2Model", "AutoModel"),
}


def check_prunable(model: HookedModel, drop: Drop, format: str) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: nothing is dropped, no attention would stay, or the format is unknown.
        LayerRangeError: a layer or head is not there.
        UnsupportedModelError: KV layers are shared between layers, or there is no compact form.
    """
    if format not in FORMATS:
        raise ConfigError(f"format '{format}' is unknown; choose {', '.join(FORMATS)}")
    drop.check(model)
    if not drop:
        raise ConfigError("nothing to drop; name attention, MLP, blocks or heads")
    if kept_attention(model, drop, format) < 1:
        raise ConfigError(f"all {model.cfg.n_layers} attention layers would go; keep at least one")
    config = model.hf.config
    if shared := getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"{model.name} has {shared} layers that share the KV cache of others; dropping one would starve them"
        )
    if format == "compact" and (drop.attn or drop.mlp or drop.heads):
        name = type(model.hf).__name__
        if name not in COMPACT:
            raise UnsupportedModelError(f"{name} has no compact form (only {', '.join(COMPACT)}); use --format stock")
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            raise UnsupportedModelError(
                f"{model.name} scales attention by layer index, which pruning changes; use --format stock"
            )


def kept_attention(model: HookedModel, drop: Drop, format: str) -> int:
    """Attention layers that still hold a KV cache."""
    return model.cfg.n_layers - len(drop.blocks) - (len(drop.attn) if format == "compact" else 0)


def build(model: HookedModel, drop: Drop, format: str = "compact") -> tuple[Any, str]:
    """(pruned Hugging Face module, its format); the dense model is not changed.

    The format comes back as "stock" where stock code can express the drop in full (whole blocks, say).

    Raises:
        ConfigError, LayerRangeError, UnsupportedModelError: see `check_prunable`.
    """
    check_prunable(model, drop, format)
    hf = _shortened(model.hf, drop.blocks)
    counts = _cut_heads(model, hf, drop, format)
    if format == "compact" and (drop.attn or drop.mlp or counts):
        return _compact(hf, drop, counts).eval(), "compact"
    _silence(hf, drop)
    return hf.eval(), "stock"


def _shortened(hf: Any, blocks: Sequence[int]) -> Any:
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


def _renumber(layers: Sequence[int], blocks: Sequence[int]) -> list[int]:
    return [layer - sum(block < layer for block in blocks) for layer in layers if layer not in blocks]


def _parts(hf: Any) -> tuple[LayerParts, ...]:
    from attlas.interp.families import describe

    return describe(hf).layers


def _cut_heads(model: HookedModel, hf: Any, drop: Drop, format: str) -> list[list[int]]:
    """Silence and cut heads in `hf`; [heads, kv heads] of every layer for the compact config, [] where none differ."""
    if not drop.heads:
        return []
    parts = _parts(hf)
    gone: dict[int, list[int]] = {index: [] for index in range(len(parts))}
    for layer, head in drop.heads:
        for index in _renumber((layer,), drop.blocks):
            gone[index].append(head)
    plans = [plan_heads(model.cfg, gone[index]) for index in gone]
    sizes = {(len(plan.keep), len(plan.keep_kv)) for plan in plans}
    uniform = len(sizes) == 1 and model.cfg.family in ("llama", "vit")
    for index, plan in enumerate(plans):
        cut = plan if uniform or format == "compact" else HeadPlan((), (), tuple(gone[index]))
        silence_heads(parts[index], cut.silent, model.cfg.d_head)
        if len(cut.keep) not in (0, model.cfg.n_heads):
            narrow(parts[index], cut, model.cfg.d_head)
    if uniform:
        ((heads, kv_heads),) = sizes
        hf.config.head_dim = model.cfg.d_head
        hf.config.num_attention_heads = heads
        if hasattr(hf.config, "num_key_value_heads"):
            hf.config.num_key_value_heads = kv_heads
    if uniform or format == "stock" or sizes == {(model.cfg.n_heads, model.cfg.n_kv_heads)}:
        return []
    return [[len(plan.keep), len(plan.keep_kv)] for plan in plans]


def forward_logits(hf: Any, inputs: Tensor) -> Tensor:
    """Logits of a pruned module: tokens int64 [B, T] or pixels [B, C, H, W] in."""
    parameter = next(hf.parameters())
    inputs = inputs.to(parameter.device)
    output = hf(inputs.to(parameter.dtype)) if inputs.is_floating_point() else hf(inputs, use_cache=False)
    logits: Tensor = output.logits
    return logits


def silenced(hf: Any, drop: Drop) -> list[nn.Parameter]:
    """The parameters of a stock build that are zero so that a module is silent (healing must leave them so)."""
    parts = _parts(hf)
    found: list[nn.Parameter] = []
    for layer in _renumber(drop.attn, drop.blocks):
        found += list(parts[layer].out_proj.parameters())
    for layer in _renumber(drop.mlp, drop.blocks):
        found += list(_last_linear(parts[layer].mlp).parameters())
    return found


def _last_linear(mlp: nn.Module) -> nn.Module:
    return [m for m in mlp.modules() if type(m).__name__ in ("Linear", "Conv1D")][-1]


@torch.no_grad()
def _silence(hf: Any, drop: Drop) -> None:
    for parameter in silenced(hf, drop):
        parameter.zero_()


def _compact(hf: Any, drop: Drop, heads_per_layer: list[list[int]]) -> Any:
    """The same weights in a class that lacks the dropped modules."""
    from attlas.analyses import prune_modeling

    config_name, model_name, auto = COMPACT[type(hf).__name__]
    values = hf.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "dtype"):
        values.pop(key, None)
    config = getattr(prune_modeling, config_name)(**values)
    config.dropped_attention = _renumber(drop.attn, drop.blocks)
    config.dropped_mlp = _renumber(drop.mlp, drop.blocks)
    config.heads_per_layer = heads_per_layer
    config.auto_map = {"AutoConfig": f"{MODELING}.{config_name}", auto: f"{MODELING}.{model_name}"}
    parameter: Tensor = next(hf.parameters())
    model = getattr(prune_modeling, model_name)(config).to(parameter.device, parameter.dtype)
    missing, _ = model.load_state_dict(hf.state_dict(), strict=False)
    if missing:
        raise CheckpointError(f"the compact form lacks {len(missing)} weights, such as {missing[0]}")
    model.config.architectures = [model_name]
    if getattr(hf, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(hf.generation_config)
    return model

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

from attlas.analyses.pruning.head_surgery import HeadPlan, narrow, plan_heads, silence_heads
from attlas.analyses.pruning.layer_fields import check_layer_fields, drop_layers, silent_layer_types
from attlas.errors import CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop, masked, mlp_writes
from attlas.interp.families import describe
from attlas.interp.structure import LayerModules

FORMATS = ("stock", "compact")
MODELING = "modeling_attlas_pruned"
# Families whose stock layout keeps all heads: GPT-2 and Phi-3 fuse them, OLMo 2 and 3 norm over all, gpt-oss has sinks a head.
_WHOLE_HEADS = ("gpt2", "gpt_neox", "phi3", "gptj", "olmo2", "olmo3", "gpt_oss")
# |Δ| of logits allowed between the masked and the pruned model, as a share of the largest logit
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def compact_auto(hf: Any) -> str | None:
    """The auto class that opens the compact form of this stock model; None where it has none."""
    from attlas.interp.pruned import modeling_attlas_pruned as modeling

    classes = modeling.CLASSES.get(type(hf.config).__name__, {})
    return classes.get(type(hf).__name__) if hasattr(modeling, "Pruned" + type(hf).__name__) else None


def check_format(model: HookedModel, format: str, target: str | None = None) -> None:
    """Refuse, before any work, what cannot be built in this format whatever is dropped.

    Args:
        target: what will go: attn, mlp, joint, block, head, group; None where that is not known.

    Raises:
        ConfigError: the format is unknown.
        UnsupportedModelError: layers share their KV cache, the model has no compact form (ViT-MAE: none at all, nor classes
            given as text), or a config field that lists layers is unknown and blocks are to go.
    """
    if format not in FORMATS:
        raise ConfigError(f"format '{format}' is unknown; choose {', '.join(FORMATS)}")
    config = model.hf.config
    if shared := getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"{model.name} has {shared} layers that share the KV cache of others; dropping one would starve them"
        )
    if model.structure.shuffles:
        raise UnsupportedModelError(
            f"{model.name} ({model.cfg.model_type}) orders patches at random where it is not told otherwise, so a checkpoint "
            "of it cannot be compared; measure drop curves"
        )
    if "zero_shot" in model.recorded:
        raise UnsupportedModelError(
            f"{model.name} with classes given as text is no checkpoint; prune its tower without them (no --zero-shot)"
        )
    if target in (None, "block"):
        check_layer_fields(config, model.name)
    if format == "compact" and target != "block" and compact_auto(model.hf) is None:
        raise UnsupportedModelError(f"{type(model.hf).__name__} has no compact form; use --format stock")


def check_prunable(model: HookedModel, drop: Drop, format: str) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: nothing is dropped, or what is silent already; no attention would stay; or the format is unknown.
        LayerRangeError: a layer or head is not there.
        UnsupportedModelError: see `check_format`.
    """
    whole = drop.with_silent(model)
    check_format(model, format, "attn" if whole.attn or whole.mlp or whole.heads else "block")
    if drop.blocks:
        check_layer_fields(model.hf.config, model.name)
    drop.check(model)
    drop.check_new(model)
    if not drop:
        raise ConfigError("nothing to drop; name attention, MLP, blocks or heads")
    if kept_attention(model, drop, format) < 1:
        raise ConfigError(f"all {model.cfg.n_layers} attention layers would go; keep at least one")


def kept_attention(model: HookedModel, drop: Drop, format: str) -> int:
    """Attention layers that still hold a KV cache."""
    return model.cfg.n_layers - len(drop.blocks) - (len(drop.with_silent(model).attn) if format == "compact" else 0)


def build(model: AnyModel, drop: Drop, format: str = "compact") -> tuple[Any, str]:
    """(pruned Hugging Face module, its format); the dense model is not changed.

    The format comes back as "stock" where stock code can express the drop in full (whole blocks, say). The outputs are
    compared with those of the masked model on a few random inputs.

    Raises:
        ConfigError, LayerRangeError, UnsupportedModelError: see `check_prunable`.
        CheckpointError: the pruned model is another function than the masked one.

    Example:
        >>> from attlas.analyses.pruning import Drop, build
        >>> smaller, form = build(model, Drop.parse(("block:2",)), format="stock")
        >>> form, len(smaller.transformer.h)
        ('stock', 3)
    """
    model = as_hooked(model)
    check_prunable(model, drop, format)
    whole = drop.with_silent(model)
    hf = _shortened(model.hf, drop.blocks)
    kept = _cut_heads(model, hf, whole, format)
    if format == "compact" and (whole.attn or whole.mlp or kept):
        hf, format = _compact(hf, whole, kept), "compact"
    else:
        _silence(hf, whole)
        format = "stock"
    hf.eval()
    _compare(model, drop, hf)
    return hf, format


def probe(model: HookedModel) -> Tensor:
    """A few random inputs to compare models on: tokens int64 [2, T], longer than a short window, or pixels [2, C, H, W]."""
    draw = torch.Generator().manual_seed(0)
    cfg = model.cfg
    if cfg.family == "vit":
        return torch.randn(2, getattr(model.hf.config, "num_channels", 3), *cfg.image_size, generator=draw)
    window = getattr(model.hf.config, "sliding_window", None) or 0
    length = min(cfg.n_ctx, window + 8 if window <= 256 else 16)
    return torch.randint(0, cfg.d_vocab, (2, length), generator=draw)


@torch.no_grad()
def _compare(model: HookedModel, drop: Drop, hf: Any) -> None:
    inputs = probe(model)
    with masked(model, drop):
        expected = model(inputs)
    far = difference(forward_logits(hf, inputs), expected)
    if not far <= TOLERANCE[model.dtype]:
        raise CheckpointError(
            f"the pruned {model.name} differs from the masked model by {far:.2g} of its largest output; "
            "this layout of its family cannot be pruned here"
        )


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest |Δ| as a share of the largest expected value (of 1 where that is smaller)."""
    expected = expected.to(found.device).double()
    if found.shape != expected.shape:
        return float("inf")
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def _shortened(hf: Any, blocks: Sequence[int]) -> Any:
    """A copy without these blocks, its config and cache slots renumbered."""
    from attlas.interp.pruned.modeling_attlas_pruned import blocks_of

    model = copy.deepcopy(hf)
    model.__dict__.pop("attlas_absent", None)
    if not blocks:
        return model
    layers = blocks_of(model)
    kept = [index for index in range(len(layers)) if index not in blocks]
    for index in sorted(blocks, reverse=True):
        del layers[index]
    for index, block in enumerate(layers):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - an attribute nn.Module does not declare
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        for index, (old, block) in enumerate(zip(kept, layers, strict=True)):
            _fold_scale(block.attn, (index + 1) / (old + 1))
    drop_layers(model.config, kept)
    return model


@torch.no_grad()
def _fold_scale(attn: Any, ratio: float) -> None:
    """GPT-2 that divides scores by its layer's number: the new number's factor is taken out of the queries."""
    attn.scaling /= ratio
    width = attn.c_attn.weight.shape[1] // 3
    attn.c_attn.weight[:, :width] *= ratio
    attn.c_attn.bias[:width] *= ratio


def _renumber(layers: Sequence[int], blocks: Sequence[int]) -> list[int]:
    return [layer - sum(block < layer for block in blocks) for layer in layers if layer not in blocks]


def _layers(hf: Any) -> tuple[LayerModules, ...]:
    return describe(hf).layers


Kept = tuple[list[list[int]], list[list[int]]]


def _cut_heads(model: HookedModel, hf: Any, drop: Drop, format: str) -> Kept | None:
    """Silence and cut heads in `hf`; kept heads and kv heads of every layer for the compact config, None where all stay."""
    if not drop.heads:
        return None
    cfg, parts = model.cfg, _layers(hf)
    gone: dict[int, list[int]] = {index: [] for index in range(len(parts))}
    for layer, head in drop.heads:
        for index in _renumber((layer,), drop.blocks):
            gone[index].append(head)
    plans = [plan_heads(cfg, gone[index]) for index in gone]
    sizes = {(len(plan.keep), len(plan.keep_kv)) for plan in plans}
    uniform = len(sizes) == 1 and _expressible(hf.config, cfg.d_head, *next(iter(sizes)))
    for index, plan in enumerate(plans):
        cut = plan if uniform or format == "compact" else HeadPlan((), (), tuple(gone[index]))
        silence_heads(parts[index], cut.silent, cfg.d_head)
        if len(cut.keep) not in (0, cfg.n_heads):
            narrow(parts[index], cut, cfg.d_head)
    if uniform:
        ((heads, kv_heads),) = sizes
        _set_heads(hf.config, cfg.d_head, heads, kv_heads)
    if uniform or format == "stock" or sizes == {(cfg.n_heads, cfg.n_kv_heads)}:
        return None
    return [list(plan.keep) for plan in plans], [list(plan.keep_kv) for plan in plans]


def _set_heads(config: Any, d_head: int, heads: int, kv_heads: int) -> None:
    config.head_dim = d_head
    config.num_attention_heads = heads
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = kv_heads


def _expressible(config: Any, d_head: int, heads: int, kv_heads: int) -> bool:
    """Whether the stock config takes these numbers of heads in every layer."""
    if config.model_type in _WHOLE_HEADS:
        return False
    trial = copy.deepcopy(config)
    _set_heads(trial, d_head, heads, kv_heads)
    try:
        again = type(config)(**trial.to_dict())
        if hasattr(again, "validate"):
            again.validate()
    except Exception:  # transformers' own check of a config, in many classes: Llama's d_model must divide by the heads
        return False
    return bool(again.num_attention_heads == heads)


def forward_logits(hf: Any, inputs: Tensor) -> Tensor:
    """Logits of a pruned module (a backbone: its last hidden state): tokens int64 [B, T] or pixels [B, C, H, W] in."""
    parameter = next(hf.parameters())
    inputs = inputs.to(parameter.device)
    output = hf(inputs.to(parameter.dtype)) if inputs.is_floating_point() else hf(inputs, use_cache=False)
    logits: Tensor | None = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def silenced(hf: Any, drop: Drop) -> list[nn.Parameter]:
    """The parameters of a stock build that are zero so that a module is silent (healing must leave them so)."""
    parts = _layers(hf)
    found: list[nn.Parameter] = []
    for layer in _renumber(drop.attn, drop.blocks):
        found += list(parts[layer].out_proj.parameters())
    for layer in _renumber(drop.mlp, drop.blocks):
        found += mlp_writes(parts[layer].mlp)
    return found


@torch.no_grad()
def _silence(hf: Any, drop: Drop) -> None:
    for parameter in silenced(hf, drop):
        parameter.zero_()


def _compact(hf: Any, drop: Drop, kept: Kept | None) -> Any:
    """The same weights in a class that lacks the dropped modules."""
    from attlas.interp.pruned import modeling_attlas_pruned as modeling

    name, config_name = "Pruned" + type(hf).__name__, "Pruned" + type(hf.config).__name__
    auto = compact_auto(hf)
    values = hf.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "dtype"):
        values.pop(key, None)
    config = getattr(modeling, config_name)(**values)
    config.dropped_attention = _renumber(drop.attn, drop.blocks)
    config.dropped_mlp = _renumber(drop.mlp, drop.blocks)
    config.kept_heads, config.kept_kv_heads = kept or ([], [])
    silent_layer_types(config, config.dropped_attention)
    config.auto_map = {"AutoConfig": f"{MODELING}.{config_name}", auto: f"{MODELING}.{name}"}
    parameter: Tensor = next(hf.parameters())
    model = getattr(modeling, name)(config).to(parameter.device, parameter.dtype)
    missing, _ = model.load_state_dict(hf.state_dict(), strict=False)
    if missing:
        raise CheckpointError(f"the compact form lacks {len(missing)} weights, such as {missing[0]}")
    model.config.architectures = [name]
    if getattr(hf, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(hf.generation_config)
    return model

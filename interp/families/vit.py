"""Vision transformers: ViT, DeiT, DINOv2 (with or without registers) and I-JEPA (no CLS token, patches are averaged)."""

from __future__ import annotations

from typing import Any

from torch import nn

from attlas.interp.config import ModelConfig
from attlas.interp.structure import LayerModules, ModelStructure, find, linear_weight
from attlas.kernels import AttentionRule

MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "ijepa")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def _layer(block: nn.Module) -> LayerModules:
    """Parts of a layer, by the names of transformers 5.2x first, then the older nested ones."""
    attn: Any = find(block, "attention")
    q = find(block, "attention.q_proj", "attention.attention.query")
    older = hasattr(block, "intermediate")  # the old ViT has no `mlp`; its residual sum sits inside `output`
    mlp = find(block, "mlp", "output.dense")
    d_head = getattr(attn, "head_dim", None) or attn.attention.attention_head_size
    return LayerModules(
        block=block,
        attn=attn,
        mlp=mlp,
        ln1=find(block, "norm1", "layernorm_before"),
        ln2=find(block, "norm2", "layernorm_after"),
        q=q,
        k=find(block, "attention.k_proj", "attention.attention.key"),
        v=find(block, "attention.v_proj", "attention.attention.value"),
        out_proj=find(block, "attention.o_proj", "attention.output.dense"),
        down_proj=find(block, "mlp.fc2", "mlp.down_proj", "output.dense"),
        attn_out=find(block, "layer_scale1", "attention"),
        mlp_out=mlp if older else find(block, "layer_scale2", "mlp"),
        rule=AttentionRule(causal=False, scale=float(d_head) ** -0.5),
        mid=find(block, "norm2", "layernorm_after"),
    )


def _mlp_width(layer: LayerModules) -> int:
    """Of the weights: DINOv2's SwiGLU takes two thirds of what its config says."""
    assert layer.down_proj is not None
    return int(linear_weight(layer.down_proj).shape[0])


def describe(hf: Any) -> ModelStructure:
    """Structure of a ViT, DeiT or DINOv2 model, with or without a classifier."""
    config = hf.config
    base: Any = hf
    for name in MODEL_TYPES:
        base = getattr(base, name, base)
    blocks: Any = getattr(base, "layers", None)
    if blocks is None:
        blocks = find(base.encoder, "layer", "layers")
    image, patch = _pair(config.image_size), _pair(config.patch_size)
    grid = (image[0] // patch[0], image[1] // patch[1])
    prefix = {"deit": ("CLS", "distillation"), "ijepa": ()}.get(config.model_type, ("CLS",))
    prefix += tuple(f"register {i + 1}" for i in range(int(getattr(config, "num_register_tokens", 0) or 0)))
    heads = config.num_attention_heads
    head = getattr(hf, "classifier", None) or getattr(hf, "cls_classifier", None)
    layers = tuple(_layer(block) for block in blocks)
    cfg = ModelConfig(
        family="vit",
        model_type=config.model_type,
        n_layers=len(blocks),
        n_heads=heads,
        n_kv_heads=heads,
        d_model=config.hidden_size,
        d_head=config.hidden_size // heads,
        d_mlp=_mlp_width(layers[0]),
        n_ctx=grid[0] * grid[1] + len(prefix),
        n_classes=head.out_features if isinstance(head, nn.Linear) else 0,
        causal=False,
        n_prefix_tokens=len(prefix),
        prefix_names=prefix,
        grid=grid,
        image_size=image,
        patch_size=patch[0],
    )
    return ModelStructure(
        cfg=cfg,
        layers=layers,
        embed=base.embeddings,
        final_norm=base.layernorm,
        unembed=head if isinstance(head, nn.Linear) else None,
        interpolates=config.model_type in ("vit", "deit", "ijepa"),  # DINOv2 does it unasked
    )

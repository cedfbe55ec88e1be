"""CLIP's vision tower: alone, with its projection or a classifier, or inside the whole model, whose tower it is then.

A norm stands in front of the first layer, and the last norm is given CLS alone. Activations are QuickGELU, as the config says.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from attlas.interp.config import ModelConfig
from attlas.interp.structure import LayerModules, ModelStructure, find
from attlas.kernels import AttentionRule

MODEL_TYPES = ("clip", "clip_vision_model")


def tower(hf: Any) -> Any:
    """What is run of a model: of one with two towers the vision tower, else the model itself."""
    return hf.vision_model if hasattr(hf, "text_model") and hasattr(hf, "vision_model") else hf


def encoder_layer(block: nn.Module) -> LayerModules:
    """Parts of a layer of CLIP or SigLIP, which have the same names."""
    attn: Any = find(block, "self_attn")
    return LayerModules(
        block=block,
        attn=attn,
        mlp=find(block, "mlp"),
        ln1=find(block, "layer_norm1"),
        ln2=find(block, "layer_norm2"),
        q=find(block, "self_attn.q_proj"),
        k=find(block, "self_attn.k_proj"),
        v=find(block, "self_attn.v_proj"),
        out_proj=find(block, "self_attn.out_proj"),
        down_proj=find(block, "mlp.fc2"),
        attn_out=attn,
        mlp_out=find(block, "mlp"),
        rule=AttentionRule(causal=False, scale=float(attn.head_dim) ** -0.5),
        mid=find(block, "layer_norm2"),
    )


def vision_config(config: Any, n_layers: int, prefix: tuple[str, ...], head: nn.Module | None) -> ModelConfig:
    """Shape of a vision tower of CLIP or SigLIP, by its own part of the config."""
    side, patch = int(config.image_size), int(config.patch_size)
    grid = (side // patch, side // patch)
    return ModelConfig(
        family="vit",
        model_type=config.model_type,
        n_layers=n_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        d_model=config.hidden_size,
        d_head=config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        n_ctx=grid[0] * grid[1] + len(prefix),
        n_classes=head.out_features if isinstance(head, nn.Linear) else 0,
        causal=False,
        n_prefix_tokens=len(prefix),
        prefix_names=prefix,
        grid=grid,
        image_size=(side, side),
        patch_size=patch,
    )


def parts(hf: Any) -> tuple[Any, nn.Module | None]:
    """(the tower with its embeddings and layers, the classifier or None) of a model that reads images."""
    base = hf if hasattr(hf, "embeddings") else hf.vision_model
    head = getattr(hf, "classifier", None)
    return base, head if isinstance(head, nn.Linear) else None


def describe(hf: Any) -> ModelStructure:
    """Structure of a CLIP vision tower, with or without a classifier."""
    base, head = parts(hf)
    named = getattr(
        hf, "unembedding", None
    )  # classes given as text; transformers' classifier reads patches without the norm
    return ModelStructure(
        cfg=vision_config(base.config, len(base.encoder.layers), ("CLS",), head),
        layers=tuple(encoder_layer(block) for block in base.encoder.layers),
        embed=base.embeddings,
        pre_norm=find(base, "pre_layrnorm"),  # transformers' own spelling
        final_norm=find(base, "post_layernorm"),
        unembed=named() if named is not None else None,
        interpolates=True,
    )

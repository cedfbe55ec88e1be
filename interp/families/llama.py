"""Llama and its kin with the same layout: RMSNorm, rotary positions, grouped-query attention."""

from __future__ import annotations

from typing import Any

from attlas.interp.config import ModelConfig
from attlas.interp.families.rotary import rotate
from attlas.interp.structure import LayerModules, ModelStructure
from attlas.kernels import AttentionRule

MODEL_TYPES = ("llama", "mistral", "qwen2")


def sliding_window(config: Any, attn: Any, layer: int) -> int | None:
    """Width of a layer's sliding window as its model masks it (the query's own position among them), or None."""
    if hasattr(attn, "sliding_window"):  # Qwen2: by layer
        return attn.sliding_window
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return config.sliding_window if kinds[layer] == "sliding_attention" else None
    return config.sliding_window if config.model_type == "mistral" else None  # Llama has none, whatever its config says


def shape(hf: Any, family: str, *traits: str, **more: Any) -> ModelConfig:
    """What the config of Llama and its kin says."""
    config, base = hf.config, getattr(hf, "model", hf)
    heads = config.num_attention_heads
    return ModelConfig(
        family=family,
        model_type=config.model_type,
        n_layers=len(base.layers),
        n_heads=heads,
        n_kv_heads=config.num_key_value_heads or heads,
        d_model=config.hidden_size,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=config.intermediate_size,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        positional="rotary",
        norm="rms",
        traits=frozenset(traits),
        **more,
    )


def layer(config: Any, block: Any, index: int, **other: Any) -> LayerModules:
    """Parts of a layer; `other` stands in place of Llama's."""
    attn = block.self_attn
    window = sliding_window(config, attn, index)
    parts: dict[str, Any] = {
        "ln1": getattr(block, "input_layernorm", None),
        "ln2": block.post_attention_layernorm,
        "mid": block.post_attention_layernorm,
        "attn_out": attn,
        "mlp_out": block.mlp,
        "rule": AttentionRule(causal=True, sliding_window=window, scale=float(attn.scaling)),
        "out_proj": attn.o_proj,
    }
    if "fused" not in other:
        parts |= {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj}
    if "down_proj" not in other:
        parts["down_proj"] = block.mlp.down_proj
    return LayerModules(block=block, attn=attn, mlp=block.mlp, **{**parts, **other})


def whole(hf: Any, cfg: ModelConfig, layers: list[LayerModules], **other: Any) -> ModelStructure:
    """Structure with Llama's embeddings, final norm and rotation."""
    base = getattr(hf, "model", hf)
    ends = {"embed": base.embed_tokens, "final_norm": base.norm, "unembed": getattr(hf, "lm_head", None)}
    return ModelStructure(cfg=cfg, layers=tuple(layers), **{**ends, "rotary": rotate, **other})


def describe(hf: Any) -> ModelStructure:
    """Structure of a LlamaForCausalLM, LlamaModel, or a model of the same layout."""
    base = getattr(hf, "model", hf)
    return whole(hf, shape(hf, "llama"), [layer(hf.config, block, i) for i, block in enumerate(base.layers)])

"""A tiny random model of every family of text models, in the ratios of a published config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

COMMON = {"vocab_size": 61, "max_position_embeddings": 64, "hidden_size": 48, "num_hidden_layers": 2}
NO_PAD = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # theirs lie beyond the small vocabulary


@dataclass(frozen=True)
class Tiny:
    """One row of the table.

    Attributes:
        model, config: names of transformers' classes.
        like: the published model whose ratios it has.
        values: of the config.
    """

    model: str
    config: str
    like: str
    values: dict[str, Any]

    def make(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model in evaluation mode; weights are far from 0, so that attention is far from uniform."""
        import transformers

        torch.manual_seed(7)
        config = getattr(transformers, self.config)(**{**COMMON, **self.values})
        config._attn_implementation = "eager"
        hf = getattr(transformers, self.model)(config)
        for name, parameter in hf.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0, 0.25)
            elif name.endswith("weight"):  # of norms
                parameter.data += torch.empty_like(parameter).uniform_(-0.4, 0.4)
            else:
                torch.nn.init.normal_(parameter, 0, 0.3)
        return hf.to(dtype).eval()


TINY: dict[str, Tiny] = {
    "neox": Tiny(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", "pythia-160m",
        {"num_attention_heads": 3, "intermediate_size": 192, "rotary_pct": 0.25},
    ),
    "neox-sequential": Tiny(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", "pythia-160m, its residual not parallel",
        {"num_attention_heads": 3, "intermediate_size": 192, "rotary_pct": 0.25, "use_parallel_residual": False},
    ),
    "llama3": Tiny(
        "LlamaForCausalLM", "LlamaConfig", "Llama-3.2-1B",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 192, "head_dim": 12, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}},
    ),
    "mistral": Tiny(
        "MistralForCausalLM", "MistralConfig", "Mistral-7B-v0.1",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 168, "sliding_window": 9, "head_dim": 8},
    ),
    "qwen3": Tiny(
        "Qwen3ForCausalLM", "Qwen3Config", "Qwen3-0.6B",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 144, "head_dim": 24},
    ),
    "phi3": Tiny(
        "Phi3ForCausalLM", "Phi3Config", "Phi-3-mini-4k",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128, "sliding_window": 9, **NO_PAD},
    ),
    "phi4-mini": Tiny(
        "Phi3ForCausalLM", "Phi3Config", "Phi-4-mini, without its long-range factors",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 128, "partial_rotary_factor": 0.75, **NO_PAD},
    ),
    "olmo2": Tiny(
        "Olmo2ForCausalLM", "Olmo2Config", "OLMo-2-1B", {"num_attention_heads": 4, "intermediate_size": 192, **NO_PAD},
    ),
    "olmo3": Tiny(
        "Olmo3ForCausalLM", "Olmo3Config", "Olmo-3-7B",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 129, "sliding_window": 9,
         "layer_types": ["sliding_attention", "full_attention"], **NO_PAD},
    ),
    "mixtral": Tiny(
        "MixtralForCausalLM", "MixtralConfig", "Mixtral-8x7B, with a sliding window",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 168, "num_local_experts": 4,
         "num_experts_per_tok": 2, "sliding_window": 9, **NO_PAD},
    ),
    "gptj": Tiny(
        "GPTJForCausalLM", "GPTJConfig", "gpt-j-6b",
        {"n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 64, "rotary_dim": 4, "vocab_size": 61, **NO_PAD},
    ),
    "gemma": Tiny(
        "GemmaForCausalLM", "GemmaConfig", "gemma-2b",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 384, "head_dim": 12},
    ),
    "gemma2": Tiny(
        "Gemma2ForCausalLM", "Gemma2Config", "gemma-2-27b, with a query_pre_attn_scalar that is not head_dim",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 384, "head_dim": 16, "sliding_window": 9,
         "query_pre_attn_scalar": 18, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": Tiny(
        "Gemma3ForCausalLM", "Gemma3TextConfig", "gemma-3-1b",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 288, "head_dim": 16, "sliding_window": 9,
         "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16},
    ),
    "gpt-oss": Tiny(
        "GptOssForCausalLM", "GptOssConfig", "gpt-oss-20b",
        {"num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "sliding_window": 9,
         "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"], **NO_PAD},
    ),
}  # fmt: skip


@functools.cache
def tiny(name: str) -> Any:
    """The shared module of a row; tests leave it as it is."""
    return TINY[name].make()


Recorded = dict[str, Any]


def recording(hf: Any) -> list[Recorded]:
    """Make `hf` (a copy of your own) tell what its own eager attention gets and gives, a layer an entry, on every call."""
    import sys

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[Recorded] = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        z, pattern = eager(module, query, key, value, mask, **kwargs)
        seen.append({"q": query, "k": key, "v": value, "mask": mask, "z": z, "pattern": pattern, **kwargs})
        return z, pattern

    ALL_ATTENTION_FUNCTIONS.register("recording", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recording", eager_mask)
    hf.config._attn_implementation = "recording"
    return seen

"""A tiny random model of every family of text models, in the ratios of a published config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

COMMON = {"vocab_size": 61, "max_position_embeddings": 64, "hidden_size": 48, "num_hidden_layers": 2}


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

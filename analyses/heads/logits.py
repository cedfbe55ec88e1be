"""What each head adds by itself to the logit of the token that comes next, over a corpus.

The final norm's scale is frozen at the value it has in the run, so the logit is linear in the residual stream and what
the heads write adds up with the rest (Elhage et al. 2021, transformer-circuits.pub/2021/framework). Logits are taken
against their mean over the vocabulary, which a softmax does not see. What a head does through later layers is not in it:
that is what ablation measures (`attlas.analyses.redundancy.head_effects`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import HEAD, LAYER, N_SEQUENCES, interval
from attlas.analyses.heads.config import LogitsConfig
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean
from attlas.data.text import TokenDataset
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.attended import refuse_absent_heads

_F = pa.float64()
HEAD_LOGITS = TableSchema(
    "head_logits",
    "one head",
    (
        LAYER,
        HEAD,
        column(
            "direct_logit",
            _F,
            "logits",
            "mean of what z·W_O adds to the logit of the true next token, less the mean over the vocabulary",
        ),
        *interval("logits", "sequences"),
        column("direct_logit_size", _F, "logits", "mean of its size"),
        column("raised", _F, "fraction", "share of predictions whose true token it raises"),
        N_SEQUENCES,
    ),
)
SCHEMAS = (HEAD_LOGITS,)


@dataclass(frozen=True)
class HeadLogits(Result):
    """Direct logit attribution of every head, by sequence.

    Attributes:
        direct, size, raised: float64 [n_sequences, layer, head], means over a sequence's predictions.
        whole: float64 [n_sequences], the logit of the true next token itself, less the mean over the vocabulary.
    """

    kind: ClassVar[str] = "head_logits"

    direct: np.ndarray
    size: np.ndarray
    raised: np.ndarray
    whole: np.ndarray
    config: LogitsConfig

    def table(self) -> pa.Table:
        """Table head_logits."""
        mean, low, high = bootstrap_mean(self.direct, seed=self.config.seed)
        layers, heads = mean.shape
        flat: dict[str, Any] = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        flat |= {"direct_logit": mean.ravel(), "low": low.ravel(), "high": high.ravel()}
        flat |= {"direct_logit_size": self.size.mean(0).ravel(), "raised": self.raised.mean(0).ravel()}
        return HEAD_LOGITS.table(flat | {"n_sequences": np.full(layers * heads, len(self.direct))})

    def tables(self) -> dict[str, pa.Table]:
        return {"head_logits": self.table()}

    def plot(self) -> Any:
        """Heatmap layers × heads."""
        import plotly.graph_objects as go

        figure = new_figure(go.Heatmap(z=self.direct.mean(0), zmid=0, colorbar={"title": "logits"}))
        figure.update_layout(
            xaxis_title="head", yaxis_title="layer", title="What each head adds to the next token's logit"
        )
        return figure.update_yaxes(autorange="reversed", dtick=1)

    def summary(self) -> dict[str, Any]:
        """The heads that add most and least, and the logit that all parts add up to."""
        mean = self.direct.mean(0)
        most, least = (np.unravel_index(at, mean.shape) for at in (mean.argmax(), mean.argmin()))
        return {
            "top_logit_head": f"{most[0]}.{most[1]}",
            "top_direct_logit": float(mean.max()),
            "lowest_logit_head": f"{least[0]}.{least[1]}",
            "lowest_direct_logit": float(mean.min()),
            "logit": float(self.whole.mean()),
            "n_sequences": len(self.direct),
        }


@torch.no_grad()
def head_logits(
    model: AnyModel, data: TokenDataset, config: LogitsConfig | None = None, track: Track = no_track
) -> HeadLogits:
    """Direct logit attribution of every head to the token that comes next, over a corpus.

    Of a model that caps its logits (Gemma 2): to the logits before the cap.

    Raises:
        UnsupportedModelError: a vision model or a backbone; a model with norms behind its sub-layers; a pruned one that
            lacks heads.

    Example:
        >>> from attlas.analyses.heads import head_logits
        >>> found = head_logits(model, text)
        >>> found.direct.shape  # logits, [sequence, layer, head]
        (8, 4, 6)
    """
    config, model = config or LogitsConfig(), as_hooked(model)
    model.require_language_model()
    model.require_plain("direct logit attribution over a corpus", "post_norm")
    refuse_absent_heads(model)
    writes = [
        model.W_O(layer).float().flatten(0, 1).T for layer in range(model.cfg.n_layers)
    ]  # [d_model, head · d_head]
    average = model.W_U.mean(1).float()
    names = ["blocks.*.attn.hook_z", "ln_final.hook_scale", "ln_final.hook_normalized"]
    parts: list[list[Tensor]] = [[], [], [], []]
    for batch in track(data.batches(config.batch_size), "logits of heads"):
        tokens = batch.to(model.device)
        cache = model.capture(tokens, names)
        target = model.W_U.T[tokens[:, 1:]].float() - average  # [B, T − 1, d_model]
        reads = _through_norm(model, target) / cache["ln_final.hook_scale"][:, :-1].float()
        found = []
        for layer, weight in enumerate(writes):
            z = cache.pop(f"blocks.{layer}.attn.hook_z")[:, :-1].float()  # [B, T − 1, H, e]
            found.append(((reads @ weight).view_as(z) * z).sum(-1))
        direct = torch.stack(found, 1).double()  # [B, layer, T − 1, head]
        whole = (cache["ln_final.hook_normalized"][:, :-1].float() * target).sum(-1).double()
        if (bias := getattr(model.structure.unembed, "bias", None)) is not None:
            whole += (bias[tokens[:, 1:]] - bias.mean()).double()
        values = (direct.mean(2), direct.abs().mean(2), (direct > 0).double().mean(2), whole.mean(1))
        for part, value in zip(parts, values, strict=True):
            part.append(value.cpu())
    added, size, raised, logit = (torch.cat(part).numpy() for part in parts)
    return HeadLogits(added, size, raised, logit, config)


def _through_norm(model: HookedModel, direction: Tensor) -> Tensor:
    """A direction [.., d_model] behind the final norm as one in front of it, up to the norm's scale."""
    direction = direction * model.norm_weight(model.final_norm).float()
    return direction - direction.mean(-1, keepdim=True) if model.cfg.norm == "ln" else direction

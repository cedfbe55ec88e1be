"""Every feature of a Lorsa: examples with their z patterns, tokens, logits, neighbours, features that fire with it.

The z pattern of a feature at a position is what each source token adds to its activation there, A[position, source] ·
(x_source·w_V + b_V): exact, since values are linear and attention is the Lorsa's own (`Lorsa.z_pattern`). It stands where an
autoencoder's features have their attribution by source. Families, nulls and shares of heads are of autoencoders of hook_z and
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.config import FeaturesConfig
from attlas.analyses.features.describe import FeaturesResult
from attlas.analyses.features.examples import Example, choose, sequences_of
from attlas.analyses.features.logits import logit_effects
from attlas.analyses.features.relations import Coactivation, neighbours
from attlas.analyses.features.stream import FeatureStream
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.lorsa.train import hooks_of, require_attention
from attlas.saes.positions import positions_for


@dataclass(frozen=True)
class LorsaFeatures(FeaturesResult):
    """What `features` gives of an autoencoder, as far as it applies to a Lorsa; a run of kind "features" too.

    Attributes:
        hook_out: the output that the Lorsa stands for.
        n_qk_heads: feature f belongs to query–key head f // (features / n_qk_heads).
    """

    hook_out: str = ""
    n_qk_heads: int = 1

    def summary(self) -> dict[str, Any]:
        """As an autoencoder's, with the hook and the number of query–key heads."""
        return super().summary() | {"hook": self.hook_out, "n_qk_heads": self.n_qk_heads}


@torch.no_grad()
def lorsa_features(
    model: AnyModel,
    lorsa: Lorsa,
    data: TokenDataset,
    config: FeaturesConfig | None = None,
    *,
    track: Track = no_track,
) -> LorsaFeatures:
    """Describe every feature of a Lorsa.

    Args:
        model: the model the Lorsa was trained on.
        data: held-out text.
        config: of it, what concerns nulls, families and scoring is not read.

    Raises:
        ConfigError: the Lorsa's width is not the model's, or its hook names no layer.
        UnsupportedModelError: as `train_lorsa`.

    Example:
        >>> from attlas.analyses.features import FeaturesConfig, lorsa_features
        >>> from attlas.saes import LorsaTrainConfig, TrainConfig, train_lorsa
        >>> small = TrainConfig(k=4, d_sae=48, n_tokens=96, batch_size=48)
        >>> lorsa = train_lorsa(LorsaTrainConfig(small, layer=3), model=model, data=text).lorsa
        >>> result = lorsa_features(model, lorsa, text, FeaturesConfig(n_top=2))
        >>> top = result.examples[0]
        >>> abs(float(top.by_source.sum()) - top.activation) < 1e-4  # the z pattern adds up to z
        True
    """
    model, config, cfg = as_hooked(model), config or FeaturesConfig(), lorsa.cfg
    layer = cfg.layer
    require_attention(model, layer)
    if cfg.d_model != model.cfg.d_model:
        raise ConfigError(
            f"the Lorsa has d_model={cfg.d_model} and {model.name} has {model.cfg.d_model}; give its own model"
        )
    skip = cfg.skip_positions if config.skip_positions is None else config.skip_positions
    exclude = cfg.exclude_tokens if config.exclude_tokens is None else config.exclude_tokens
    positions = positions_for(model, skip, exclude)
    stream = FeatureStream(cfg.d_sae, config.n_top, config.n_sample, config.seed)
    coactivation = Coactivation(cfg.d_sae, config.coactivation_tokens)
    hook_in = hooks_of(layer)[0]
    batches = data.minibatches(config.batch_size)
    for batch in track(batches, "features", len(batches)):
        x = model.capture(batch.inputs.to(model.device), hook_in)[hook_in].float()
        values, indices = lorsa.encode_sparse(x)
        keep = positions.mask(batch.inputs, text=batch.mask).to(values.device)
        stream.add(values, indices, batch.inputs, keep)
        coactivation.add(values[keep], indices[keep])
    examples = choose(stream, config.per_band)
    _fill(examples, model, lorsa, data, hook_in, config, track)

    logits = (
        logit_effects(model, lorsa.W_O, cfg.hook_out, config.n_logits) if model.structure.unembed is not None else None
    )
    top_tokens = stream.top_tokens()
    shown = set() if logits is None else {int(i) for slot in (1, 3) for i in logits[slot].unique()}
    spoken = {t for entries in top_tokens.values() for t, _, _ in entries}
    spoken |= {int(t) for ids in sequences_of(examples).values() for t in np.unique(ids)}
    return LorsaFeatures(
        stream=stream,
        examples=examples,
        families={},
        shares=None,
        logits=logits,
        neighbours=neighbours(lorsa.W_O, config.n_related),
        coactivation=coactivation,
        nulls={},
        names=_names(model, shown),
        token_names=_names(model, spoken),
        top_tokens=top_tokens,
        config=config,
        hook_out=cfg.hook_out,
        n_qk_heads=cfg.n_qk_heads,
    )


def _names(model: HookedModel, ids: set[int]) -> dict[int, str]:
    return {i: model.to_str_tokens([i])[0] if model.tokenizer is not None else str(i) for i in ids}


def _fill(
    examples: list[Example],
    model: HookedModel,
    lorsa: Lorsa,
    data: TokenDataset,
    hook_in: str,
    config: FeaturesConfig,
    track: Track,
) -> None:
    """Tokens, activations and the z pattern of every example, one sequence at a time."""
    by_sequence: dict[int, list[Example]] = {}
    for example in examples:
        by_sequence.setdefault(example.sequence, []).append(example)
    text: dict[int, str] = {}
    for sequence in track(sorted(by_sequence), "examples", len(by_sequence)):
        here = by_sequence[sequence]
        tokens = data.tensor[[sequence]]
        length = tokens.shape[1] if data.mask is None else int(data.mask[sequence].sum())
        x = model.capture(tokens.to(model.device), hook_in)[hook_in].float()
        values, indices = (t[0].cpu() for t in lorsa.encode_sparse(x))
        features, at = (
            torch.tensor(column, device=x.device)
            for column in zip(*((e.feature, e.position) for e in here), strict=True)
        )
        patterns = lorsa.z_pattern(x[0], features, at).float().cpu()
        ids = tokens[0].tolist()
        text |= _names(model, set(ids) - text.keys())
        for example, pattern in zip(here, patterns, strict=True):
            _show(example, values, indices, pattern, ids, text, length, config.context)


def _show(
    example: Example,
    values: Tensor,
    indices: Tensor,
    pattern: Tensor,
    ids: list[int],
    text: dict[int, str],
    length: int,
    context: int,
) -> None:
    """What is shown around an example's position; padding is not shown."""
    low, high = max(0, example.position - context), min(length, example.position + context // 3 + 1)
    example.start = low
    example.activations = (values[low:high] * (indices[low:high] == example.feature)).sum(-1).float().numpy()
    example.tokens = [text[i] for i in ids[low:high]]
    example.by_source = pattern.numpy()
    example.sequence_tokens = torch.tensor(ids).numpy()

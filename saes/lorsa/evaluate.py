"""Measure a Lorsa, and autoencoders beside it, by one yardstick: the output of the attention layer that they stand for.

Each subject gives ŷ in place of y, `hook_attn_out`, at the positions that count: a Lorsa from the layer's input, an autoencoder
of `hook_z` by its ẑ·W_O + b_O, one of `hook_attn_out` as it is. Explained variance, squared error and the rest are of y, and
losses are those with ŷ spliced in (attlas.saes.evaluation.tables has every definition). Ablations set y to zero or its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.runs.record import Ref
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.saes.base import SAE
from attlas.saes.evaluation.behaviour import CleanRun
from attlas.saes.evaluation.config import EvalConfig
from attlas.saes.evaluation.controls import Reconstructor, encode_once
from attlas.saes.evaluation.measure import ablations, evaluation_batches, intervals, metric_rows, reconstruction_sums
from attlas.saes.evaluation.places import Place, measure_moments
from attlas.saes.evaluation.tables import EVALUATION
from attlas.saes.identity import check_sae
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.lorsa.train import hooks_of, require_attention
from attlas.saes.plots import evaluation_figure
from attlas.saes.positions import positions_for
from attlas.saes.splice import put_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from attlas.data.dataset import Batch, Dataset


@dataclass(frozen=True)
class LayerEval(Result):
    """Metrics of every subject on one layer's output; in a workspace a run of kind "lorsa_eval".

    Attributes:
        rows: of the table evaluation; `subject` is the name that was given.
        config: of the evaluation.
        model_ref, data_ref: what it ran on.
        hashes: subject → its weights' hash.
        layer: of the model.
    """

    kind: ClassVar[str] = "lorsa_eval"

    rows: list[dict[str, Any]]
    config: EvalConfig
    model_ref: Ref
    data_ref: Ref
    hashes: dict[str, str]
    layer: int

    def value(self, metric: str, subject: str | None = None) -> float:
        """One number, of the first subject where none is named.

        Raises:
            ConfigError: it was not measured.
        """
        subject = subject or self.rows[0]["subject"]
        for row in self.rows:
            if row["metric"] == metric and row["subject"] == subject:
                return float(row["value"])
        raise ConfigError(f"'{metric}' of '{subject}' was not measured")

    def tables(self) -> dict[str, pa.Table]:
        """The table evaluation."""
        return {"evaluation": EVALUATION.table(self.rows)}

    def summary(self) -> dict[str, Any]:
        """The first subject's metrics by name, and the others' explained variance and CE recovered."""
        first = self.rows[0]["subject"]
        found: dict[str, Any] = {"layer": self.layer, "subject": first}
        found |= {row["metric"]: row["value"] for row in self.rows if row["subject"] == first}
        for row in self.rows:
            if row["subject"] != first and row["metric"] in ("l0", "explained_variance", "ce_recovered"):
                found[f"{row['metric']} {row['subject']}"] = row["value"]
        return found | {"n_tokens": self.rows[0]["n_tokens"]}

    def plot(self) -> go.Figure:
        """Explained variance and CE recovered by subject, with intervals."""
        return evaluation_figure(self.rows)

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model_ref, self.data_ref

    def _recorded_config(self) -> dict[str, Any]:
        return {"evaluation": self.config, "layer": self.layer, "subjects": self.hashes}

    @property
    def _seed(self) -> int | None:
        return self.config.eval_seed


@torch.no_grad()
def evaluate_layer(
    subjects: Mapping[str, Lorsa | SAE],
    model: AnyModel,
    data: Dataset,
    config: EvalConfig | None = None,
    *,
    track: Track = no_track,
) -> LayerEval:
    """Measure Lorsas and autoencoders of one layer on the output of its attention.

    Args:
        subjects: name → Lorsa or autoencoder (of hook_z or hook_attn_out); the first says which positions count.
        model: the model they belong to.
        data: tokens that they were not trained on.
        config: what to measure; controls are left out.

    Raises:
        ConfigError: they are of several layers, or one is of another hook or width.
        UnsupportedModelError: as `train_lorsa`, or a backbone.

    Example:
        >>> from attlas.saes import EvalConfig, Lorsa, LorsaConfig, evaluate_layer
        >>> hooks = {"hook_in": "blocks.2.ln1.hook_normalized", "hook_out": "blocks.2.hook_attn_out"}
        >>> lorsa = Lorsa(LorsaConfig(d_model=192, d_sae=48, n_qk_heads=6, d_qk_head=32, n_ctx=24, k=4, **hooks))
        >>> found = evaluate_layer({"lorsa": lorsa, "sae": sae}, model, text, EvalConfig(n_bootstrap=0))
        >>> found.value("l0", "sae") <= sae.cfg.k
        True
    """
    hooked, config = as_hooked(model), config or EvalConfig()
    if not subjects:
        raise ConfigError("nothing to measure; give a Lorsa, and autoencoders of its layer beside it")
    layer = _layer_of(subjects, hooked)
    require_attention(hooked, layer)
    hooked.require_language_model()
    first = next(iter(subjects.values())).cfg
    skip = config.skip_positions if config.skip_positions is not None else first.skip_positions
    exclude = config.exclude_tokens if config.exclude_tokens is not None else first.exclude_tokens
    place = Place(hooks_of(layer)[1], positions_for(hooked, skip, exclude))
    place.positions.require_some(data)
    batches = evaluation_batches(data, hooked, config)
    mean_D = measure_moments(hooked, batches, [place], track)[place][0]
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in subjects}
    fired = {name: torch.zeros(s.cfg.d_sae, dtype=torch.int64, device=mean_D.device) for name, s in subjects.items()}
    for batch in track(batches, "evaluating", len(batches)):
        _add(parts, fired, subjects, hooked, layer, place, mean_D, batch, config)

    rows = []
    for name, subject in subjects.items():
        sums = {key: np.concatenate([s[key] for s in parts[name]]) for key in parts[name][0]}
        metrics = intervals(sums, config)
        metrics["dead_fraction"] = (float((fired[name] == 0).double().mean()), None, None)
        told = Reconstructor(name, lambda x: (x, x), _note(subject))
        rows += metric_rows(told, metrics, n_sequences=len(data), n_tokens=int(sums["n"].sum()))
    hashes = {name: subject.hash for name, subject in subjects.items()}
    return LayerEval(rows, config, hooked.ref, data.ref, hashes, layer)


def _layer_of(subjects: Mapping[str, Lorsa | SAE], model: HookedModel) -> int:
    """The one layer of all, each checked against the model."""
    layers: dict[int, str] = {}
    for name, subject in subjects.items():
        cfg = subject.cfg
        if isinstance(cfg, type(None)) or not isinstance(subject, Lorsa | SAE):
            raise ConfigError(f"'{name}' is neither a Lorsa nor an autoencoder")
        if isinstance(subject, Lorsa):
            if subject.cfg.d_model != model.cfg.d_model:
                raise ConfigError(
                    f"the Lorsa '{name}' has d_model={subject.cfg.d_model} and {model.name} has {model.cfg.d_model}"
                )
            layers.setdefault(subject.cfg.layer, name)
            continue
        hook = check_sae(subject, model)
        if not hook.endswith(("attn.hook_z", "hook_attn_out")):
            raise ConfigError(f"'{name}' is of '{hook}'; beside a Lorsa stand autoencoders of hook_z or hook_attn_out")
        layers.setdefault(int(hook.split(".")[1]), name)
    if len(layers) > 1:
        said = ", ".join(f"'{name}' of layer {layer}" for layer, name in layers.items())
        raise ConfigError(f"subjects are of several layers ({said}); give those of one")
    return next(iter(layers))


def _add(
    parts: dict[str, list[dict[str, np.ndarray]]],
    fired: dict[str, Tensor],
    subjects: Mapping[str, Lorsa | SAE],
    model: HookedModel,
    layer: int,
    place: Place,
    mean_D: Tensor,
    batch: Batch,
    config: EvalConfig,
) -> None:
    """One batch: every subject's sums over each sequence."""
    hook_in, hook_out = hooks_of(layer)
    hooks = [hook_in, hook_out, f"blocks.{layer}.attn.hook_z"]
    run = CleanRun(model, batch, None, hooks) if config.functional else None
    cache = run.cache if run is not None else model.capture(batch.inputs.to(model.device), hooks)
    y_ND, keep_BT = place.rows(batch, cache[hook_out])
    ablated = ablations(run, batch, place, mean_D) if run is not None else {}
    for name, subject in subjects.items():
        y_hat_ND, active_N, fired_F = _reconstruct(subject, model, layer, cache, y_ND, keep_BT)
        fired[name] += fired_F
        sums = reconstruction_sums(y_ND, y_hat_ND, active_N, mean_D, keep_BT)
        if run is not None:
            sums |= run.sums | ablated | run.compare("spliced", run.patched(hook_out, put_rows(y_hat_ND, keep_BT)))
        parts[name].append(sums)


def _reconstruct(
    subject: Lorsa | SAE, model: HookedModel, layer: int, cache: Mapping[str, Tensor], y_ND: Tensor, keep_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """ŷ [N, D], active features a row [N] and rows a feature was active on [F], at the positions that count."""
    if isinstance(subject, Lorsa):
        z, indices = (t[keep_BT] for t in subject.encode_sparse(cache[hooks_of(layer)[0]].float()))
        fired_F = torch.bincount(indices[z > 0], minlength=subject.cfg.d_sae)
        return subject.decode_sparse(z, indices).to(y_ND.dtype), (z > 0).sum(-1), fired_F
    if subject.cfg.hook_name.endswith("hook_attn_out"):
        return encode_once(subject, y_ND)
    z_hat_ND, active_N, fired_F = encode_once(subject, cache[f"blocks.{layer}.attn.hook_z"].flatten(2)[keep_BT].float())
    W_O, b_O = model.W_O(layer).flatten(0, 1), model.b_O(layer)
    return z_hat_ND @ W_O.to(z_hat_ND) + b_O.to(z_hat_ND), active_N, fired_F


def _note(subject: Lorsa | SAE) -> str:
    n = sum(p.numel() for p in subject.parameters())
    heads = f", {subject.cfg.n_qk_heads} query–key heads" if isinstance(subject, Lorsa) else ""
    return f"{subject.cfg.arch}, {subject.cfg.d_sae} features{heads}, {n:,} parameters"

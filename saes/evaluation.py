"""Evaluate a sparse autoencoder where it is used: reconstruction, and what the model loses when it is spliced in.

Two passes over the data. The first, which stops at the hook, takes the mean and covariance; the second runs the model
clean, with zero and mean ablation, and with the SAE and every control spliced in. Definitions are in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.data.progress import Track, no_track
from attlas.data.workspace import Ref, Run, Workspace
from attlas.errors import ConfigError
from attlas.saes.activations import capture_rows, match_hooks
from attlas.saes.base import SAE
from attlas.saes.controls import Subject, active_count, make_control, sae_subject
from attlas.saes.eval_config import EvalConfig
from attlas.saes.eval_schema import DENSITY, EVALUATION, METRICS
from attlas.saes.functional import Behaviour, measure_behaviour
from attlas.saes.sources import Inputs, as_hooked
from attlas.saes.splice import HookFn, replace_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from attlas.data.images import ImageDataset
    from attlas.data.text import TokenDataset
    from attlas.interp import HookedModel

SAMPLE_ROWS = 8_192
LOGIT_BUDGET = 2**26  # floats of one batch's logits, so that a large vocabulary does not fill the memory


@dataclass(frozen=True)
class EvalResult:
    """Metrics of an SAE and its controls.

    Attributes:
        rows: of the table "evaluation".
        density_F: share of tokens each feature was active on, float64 [F].
        config: of the evaluation.
        model_ref, data_ref: what it ran on.
        sae_hash: the SAE's.
    """

    rows: list[dict[str, Any]]
    density_F: np.ndarray
    config: EvalConfig
    model_ref: Ref
    data_ref: Ref
    sae_hash: str

    def value(self, metric: str, subject: str = "sae") -> float:
        """One number.

        Raises:
            ConfigError: it was not measured.
        """
        for row in self.rows:
            if row["metric"] == metric and row["subject"] == subject:
                return float(row["value"])
        raise ConfigError(f"'{metric}' of '{subject}' was not measured")

    def table(self) -> pa.Table:
        """All metrics (schema `EVALUATION`)."""
        return EVALUATION.table(self.rows)

    def density_table(self) -> pa.Table:
        """Histogram of log10 activation densities, half-decades (schema `DENSITY`)."""
        alive = self.density_F[self.density_F > 0]
        edges = np.arange(-6, 0.5, 0.5)
        counts, _ = np.histogram(np.log10(alive).clip(edges[0], edges[-1]), bins=edges)
        rows = [
            {"bin_left": float(left), "bin_right": float(right), "count": int(n)}
            for left, right, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        dead = {"bin_left": None, "bin_right": None, "count": int((self.density_F == 0).sum())}
        return DENSITY.table([dead, *rows])

    def tables(self) -> dict[str, pa.Table]:
        """All tables by name."""
        return {"evaluation": self.table(), "density": self.density_table()}

    def summary(self) -> dict[str, Any]:
        """The SAE's metrics by name, and explained variance of each control."""
        found: dict[str, Any] = {row["metric"]: row["value"] for row in self.rows if row["subject"] == "sae"}
        for row in self.rows:
            if row["subject"] != "sae" and row["metric"] in ("explained_variance", "ce_recovered"):
                found[f"{row['metric']}_{row['subject']}"] = row["value"]
        return found | {"n_tokens": self.rows[0]["n_tokens"], "sae": self.sae_hash}

    def plot(self) -> go.Figure:
        """Explained variance and CE recovered of the SAE beside its controls, with intervals."""
        from attlas.saes.plots import evaluation_figure

        return evaluation_figure(self.rows)

    def save(self, workspace: Workspace | str | Path, parents: tuple[str, ...] = ()) -> Run:
        """Write a run of kind "sae_eval"; `parents` holds the id of the SAE's run."""
        workspace = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
        with workspace.begin(
            "sae_eval",
            model=self.model_ref,
            data=self.data_ref,
            config={"evaluation": self.config, "sae": self.sae_hash},
            seed=self.config.eval_seed,
            parents=parents,
        ) as writer:
            for name, table in self.tables().items():
                writer.table(name, table)
            writer.arrays("density", {"density": self.density_F})
            writer.summary = self.summary()
        return writer.record


@torch.no_grad()
def evaluate(
    sae: SAE,
    model: HookedModel,
    data: Inputs | TokenDataset | ImageDataset,
    config: EvalConfig | None = None,
    *,
    hook: str | None = None,
    track: Track = no_track,
) -> EvalResult:
    """Measure an SAE on held-out data.

    Args:
        sae: any SAE that Attlas reads.
        model: the model it belongs to; a TransformerBridge or a Hugging Face module will do.
        data: tokens or images it was not trained on.
        config: what to measure.
        hook: where to splice it in; None takes the SAE's own.
        track: progress bar.

    Raises:
        ConfigError: the SAE does not say its hook and none is given, or its d_in is not the hook's width.
        HookNameError: the model has no such hook.

    Example:
        >>> result = evaluate(sae, model, load_tokens("embedded:val", model.tokenizer, n_tokens=65_536))
        >>> result.value("ce_recovered")
    """
    config, model = config or EvalConfig(), as_hooked(model)
    from attlas.interp.labels import classifier_labels

    name = hook or sae.cfg.hook_name
    if not name:
        raise ConfigError("the SAE does not say which hook it belongs to; give hook='blocks.L.attn.hook_z'")
    (name,) = match_hooks(model, [name])
    if model.cfg.family != "vit":
        model.require_head("loss to recover")
    inputs = Inputs.of(data)
    batches = _batches(inputs, model, config)
    mean_D, covariance_DD, sample_ND = _moments(sae, model, inputs, batches, name, track)

    fired_F = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.W_dec.device)
    k = max(1, min(round(float(active_count(sae, sample_ND).float().mean())), sae.cfg.d_in))
    subjects = [sae_subject(sae)]
    subjects += [make_control(c, sae, mean_D, covariance_DD, sample_ND, k, config.eval_seed) for c in config.controls]

    collected: dict[str, list[dict[str, np.ndarray]]] = {subject.name: [] for subject in subjects}
    truth = classifier_labels(model, inputs, warn=True)  # in the classifier's numbering
    behaviour = Behaviour(model, name, truth is not None) if config.functional else None
    for picked in track(batches, "evaluating"):
        batch = inputs.tensor[picked].to(model.device)
        labels = truth[picked].to(model.device) if truth is not None else None
        rows_ND = capture_rows(model, batch, [name])[name].float()
        values_NK, indices_NK = sae.encode_sparse(rows_ND)
        fired_F += torch.bincount(indices_NK[values_NK > 0], minlength=sae.cfg.d_sae)
        baseline = behaviour.baseline(batch, labels, mean_D) if behaviour is not None else None
        for subject in subjects:
            stats = _reconstruction(subject, rows_ND, mean_D, len(batch))
            if baseline is not None:
                stats |= measure_behaviour(baseline, reconstruction_hook(subject))
            collected[subject.name].append(stats)

    n_tokens = sum(int(stats["n"].sum()) for stats in collected["sae"])
    density_F = fired_F.cpu().double().numpy() / n_tokens
    rows = []
    for subject in subjects:
        arrays = {key: np.concatenate([s[key] for s in collected[subject.name]]) for key in collected[subject.name][0]}
        metrics = _intervals(arrays, config)
        if subject.name == "sae":
            metrics["dead_fraction"] = (float((density_F == 0).mean()), None, None)
        rows += _rows(subject, metrics, n_sequences=len(inputs.tensor), n_tokens=n_tokens)
    return EvalResult(rows, density_F, config, model.ref, inputs.ref, sae.hash)


def _batches(inputs: Inputs, model: HookedModel, config: EvalConfig) -> list[Tensor]:
    """Index batches, smaller where one batch's logits would be large."""
    n, size = len(inputs.tensor), config.eval_batch
    if model.cfg.family != "vit" and config.functional:
        size = max(1, min(size, LOGIT_BUDGET // (inputs.tensor.shape[1] * model.cfg.d_vocab)))
    elif model.cfg.family == "vit":
        size *= 8
    return list(torch.arange(n).split(size))


def _moments(
    sae: SAE, model: HookedModel, inputs: Inputs, batches: Sequence[Tensor], hook: str, track: Track
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], covariance [D,D] (float64) and a sample of rows, from a pass that stops at the hook."""
    total_D, products_DD, n, sample, sampled = None, None, 0, [], 0
    for picked in track(batches, "measuring activations"):
        rows = capture_rows(model, inputs.tensor[picked], [hook])[hook].float()
        rows = sae.flatten_heads(rows)
        double = rows.double()
        total_D = double.sum(0) if total_D is None else total_D + double.sum(0)
        products_DD = double.T @ double if products_DD is None else products_DD + double.T @ double
        n += len(rows)
        if sampled < SAMPLE_ROWS:
            sample.append(rows[: SAMPLE_ROWS - sampled])
            sampled += len(sample[-1])
    if total_D is None or products_DD is None:
        raise ConfigError("there are no sequences to evaluate on; give more tokens or images")
    mean_D = total_D / n
    return mean_D.float(), products_DD / n - torch.outer(mean_D, mean_D), torch.cat(sample)


def _reconstruction(subject: Subject, x_ND: Tensor, mean_D: Tensor, n_sequences: int) -> dict[str, np.ndarray]:
    """Sums over each sequence, float64 [n_sequences], from which every ratio is made."""
    x_hat_ND, active_N = subject.reconstruct(x_ND)
    centred_ND = x_ND - mean_D
    per_token = {
        "n": torch.ones(len(x_ND), device=x_ND.device),
        "error": (x_ND - x_hat_ND).pow(2).sum(-1),
        "variance": centred_ND.pow(2).sum(-1),
        "aligned": ((x_hat_ND - mean_D) * centred_ND).sum(-1),
        "cosine": torch.nn.functional.cosine_similarity(x_ND, x_hat_ND, dim=-1),
        "active": active_N,
    }
    return {name: t.double().reshape(n_sequences, -1).sum(1).cpu().numpy() for name, t in per_token.items()}


def reconstruction_hook(subject: Subject) -> HookFn:
    """A hook function that puts the subject's reconstruction in place."""
    return replace_rows(lambda x: subject.reconstruct(x.float())[0])


def _ratios(s: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics from sums; works on scalars and on a leading axis of resamplings alike."""
    found = {
        "l0": s["active"] / s["n"],
        "explained_variance": 1 - s["error"] / s["variance"],
        "squared_error": s["error"] / s["n"],
        "cosine": s["cosine"] / s["n"],
        "shrinkage_slope": s["aligned"] / s["variance"],
    }
    if "predictions" in s:
        m = s["predictions"]
        ce = {name: s[f"ce_{name}"] / m for name in ("clean", "spliced", "zero", "mean")}
        found |= {f"ce_{name}": value for name, value in ce.items()}
        found["ce_increase"] = ce["spliced"] - ce["clean"]
        found["ce_recovered"] = (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"])
        found["ce_recovered_mean"] = (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["clean"])
    for name in ("kl", "kl_zero", "accuracy_clean", "accuracy_spliced", "accuracy_zero"):
        if name in s:
            found[name] = s[name] / s["outputs"]
    for name in ("output_cosine", "output_cosine_zero", "output_cosine_mean"):
        if name in s:
            found[name] = s[name] / s["outputs"]
    return found


def _intervals(
    arrays: dict[str, np.ndarray], config: EvalConfig
) -> dict[str, tuple[float, float | None, float | None]]:
    """Each metric with its bootstrap interval: sequences are drawn with replacement, ratios formed from their sums."""
    values = _ratios({name: np.asarray(a.sum()) for name, a in arrays.items()})
    n = len(arrays["n"])
    if config.n_bootstrap == 0 or n < 2:
        return {name: (float(value), None, None) for name, value in values.items()}
    generator = np.random.default_rng(config.eval_seed)
    weights = generator.multinomial(n, np.full(n, 1 / n), size=config.n_bootstrap).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = _ratios({name: weights @ a for name, a in arrays.items()})
    tail = (1 - config.confidence) / 2
    return {
        name: (float(value), *map(float, np.quantile(drawn[name], [tail, 1 - tail])))  # type: ignore[misc]
        for name, value in values.items()
    }


def _rows(
    subject: Subject,
    metrics: dict[str, tuple[float, float | None, float | None]],
    *,
    n_sequences: int,
    n_tokens: int,
) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject.name,
            "metric": name,
            "value": value,
            "low": low,
            "high": high,
            "unit": METRICS[name].unit,
            "description": METRICS[name].definition,
            "note": subject.note,
            "n_sequences": n_sequences,
            "n_tokens": n_tokens,
        }
        for name, (value, low, high) in metrics.items()
    ]

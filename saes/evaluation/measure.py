"""Evaluate a sparse autoencoder where it is used: reconstruction, and what the model loses when it is spliced in.

Two passes over the data, for all SAEs together. The first, which stops at the last hook, takes means and covariances; the
second runs the model clean once, and from there with zero and mean ablation and with every SAE and control spliced in, at
the positions that count (see `attlas.saes.positions`). Definitions are in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.data.dataset import Batch, Dataset
from attlas.data.processes.group import ALONE, Group
from attlas.data.processes.turns import in_turn
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.stats import bootstrap_ratio, count_mean
from attlas.data.workspace import Ref
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import classifier_labels
from attlas.saes.base import SAE
from attlas.saes.evaluation.behaviour import CleanRun
from attlas.saes.evaluation.config import EvalConfig
from attlas.saes.evaluation.controls import Reconstructor, encode_once, make_control, sae_reconstructor
from attlas.saes.evaluation.places import Place, measure_moments
from attlas.saes.evaluation.tables import DENSITY, EVALUATION, METRICS
from attlas.saes.identity import check_sae
from attlas.saes.plots import evaluation_figure
from attlas.saes.positions import positions_for
from attlas.saes.splice import put_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

COUNTED = ("accuracy_clean", "accuracy_spliced", "accuracy_zero")  # of images answered rightly
LOGIT_BUDGET = 2**26  # floats of one batch's logits, so that a large vocabulary does not fill the memory


@dataclass(frozen=True)
class EvalResult(Result):
    """Metrics of an SAE and its controls.

    Attributes:
        rows: of the table "evaluation".
        density_F: share of tokens each feature was active on, float64 [F].
        config: of the evaluation.
        model_ref, data_ref: what it ran on.
        sae_hash: the SAE's.
    """

    kind: ClassVar[str] = "sae_eval"

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
        return evaluation_figure(self.rows)

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model_ref, self.data_ref

    def _recorded_config(self) -> dict[str, Any]:
        return {"evaluation": self.config, "sae": self.sae_hash}

    @property
    def _seed(self) -> int | None:
        return self.config.eval_seed

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        return {"density": {"density": self.density_F}}


@torch.no_grad()
def evaluate(
    sae: SAE,
    model: AnyModel,
    data: Dataset,
    config: EvalConfig | None = None,
    *,
    hook: str | None = None,
    track: Track = no_track,
) -> EvalResult:
    """Measure an SAE on held-out data.

    Args:
        sae: any SAE that Attlas reads.
        model: the model it belongs to.
        data: tokens or images it was not trained on.
        config: what to measure.
        hook: where to splice it in; None takes the SAE's own.
        track: progress bar.

    Raises:
        ConfigError: the SAE does not say its hook and none is given, or its d_in is not the hook's width.
        HookNameError: the model has no such hook.

    Example:
        >>> from attlas.saes import EvalConfig, evaluate
        >>> result = evaluate(sae, model, text, EvalConfig(n_bootstrap=0))
        >>> sorted({row["subject"] for row in result.rows})
        ['pca', 'random_dictionary', 'sae', 'shuffled_weights']
        >>> result.value("l0") <= sae.cfg.k  # active features a token
        True
    """
    return evaluate_all([(sae, hook)], model, data, config, track=track)[0]


@torch.no_grad()
def evaluate_all(
    saes: Sequence[tuple[SAE, str | None]],
    model: AnyModel,
    data: Dataset,
    config: EvalConfig | None = None,
    *,
    track: Track = no_track,
    group: Group = ALONE,
) -> list[EvalResult]:
    """`evaluate` for many SAEs of one model: the clean passes are shared, and ablations between SAEs of one hook.

    Args:
        saes: each with its hook, or None for its own.
        group: processes that measure together, each batch by one of them; the first gets the results, those of one process
            to the bit, the others none.

    Raises: as `evaluate`.

    Example:
        >>> from attlas.saes import EvalConfig, evaluate_all
        >>> quick = EvalConfig(controls=(), n_bootstrap=0)
        >>> results = evaluate_all([(sae, None), (sae, "blocks.2.attn.hook_z")], model, text, quick)
        >>> [result.value("l0") <= sae.cfg.k for result in results]
        [True, True]
    """
    model = as_hooked(model)
    config = config or EvalConfig()
    model.require_text_head("loss to recover")
    places = [
        Place(check_sae(sae, model, hook), positions_for(model, config.skip_positions, config.exclude_tokens, sae.cfg))
        for sae, hook in saes
    ]
    for place in places:
        place.positions.require_some(data)
    batches = evaluation_batches(data, model, config)
    truth = classifier_labels(model, data, warn=True)  # in the classifier's numbering
    moments = measure_moments(model, batches, list(dict.fromkeys(places)), track, group)
    trials = [_Trial(sae, place, moments[place], config) for (sae, _), place in zip(saes, places, strict=True)]
    hooks = list(dict.fromkeys(place.hook for place in places))

    def measure(batch: Batch) -> list[dict[str, dict[str, np.ndarray]]]:
        labels = truth[batch.rows].to(model.device) if truth is not None else None
        run = CleanRun(model, batch, labels, hooks) if config.functional else None
        cache = run.cache if run is not None else model.capture(batch.inputs, hooks)
        ablated: dict[Place, dict[str, np.ndarray]] = {}
        for trial in trials:
            if run is not None and trial.place not in ablated:
                ablated[trial.place] = ablations(run, batch, trial.place, trial.mean_D)
        return [trial.sums(batch, cache[trial.place.hook], run, ablated.get(trial.place, {})) for trial in trials]

    for _, found in track(in_turn(group, batches, measure), "evaluating", len(batches)):
        for trial, sums in zip(trials, found, strict=True):
            for name, stats in sums.items():
                trial.collected[name].append(stats)
    for trial in trials:
        group.sum(trial.fired_F)
    if not group.first:
        return []
    return [trial.result(model.ref, data.ref, len(data)) for trial in trials]


class _Trial:
    """One SAE and its controls, measured batch by batch."""

    def __init__(self, sae: SAE, place: Place, moments: tuple[Tensor, Tensor, Tensor], config: EvalConfig) -> None:
        self.sae, self.place, self.config = sae, place, config
        self.mean_D, covariance_DD, sample_ND = moments
        self.fired_F = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        k = max(1, min(round(float(encode_once(sae, sample_ND)[1].float().mean())), sae.cfg.d_in))
        self.subjects = [sae_reconstructor(sae, self.fired_F)]
        for name in config.controls:
            self.subjects.append(make_control(name, sae, self.mean_D, covariance_DD, sample_ND, k, config.eval_seed))
        self.collected: dict[str, list[dict[str, np.ndarray]]] = {subject.name: [] for subject in self.subjects}

    def sums(
        self, batch: Batch, activation: Tensor, run: CleanRun | None, ablated: dict[str, np.ndarray]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Sums of one batch by subject; what is spliced in is the reconstruction that was measured."""
        found = {}
        x_ND, keep_BT = self.place.rows(batch, activation)
        for subject in self.subjects:
            x_hat_ND, active_N = subject.reconstruct(x_ND)
            stats = reconstruction_sums(x_ND, x_hat_ND, active_N, self.mean_D, keep_BT)
            if run is not None:
                other = run.patched(self.place.hook, put_rows(x_hat_ND, keep_BT))
                stats |= run.sums | ablated | run.compare("spliced", other)
            found[subject.name] = stats
        return found

    def result(self, model: Ref, data: Ref, n_sequences: int) -> EvalResult:
        """Ratios and their intervals, over all batches."""
        n_tokens = sum(int(stats["n"].sum()) for stats in self.collected["sae"])
        density_F = self.fired_F.cpu().double().numpy() / n_tokens
        rows = []
        for subject in self.subjects:
            parts = self.collected[subject.name]
            metrics = intervals({key: np.concatenate([s[key] for s in parts]) for key in parts[0]}, self.config)
            if subject.name == "sae":
                metrics["dead_fraction"] = (float((density_F == 0).mean()), None, None)
            rows += metric_rows(subject, metrics, n_sequences=n_sequences, n_tokens=n_tokens)
        return EvalResult(rows, density_F, self.config, model, data, self.sae.hash)


def ablations(run: CleanRun, batch: Batch, place: Place, mean_D: Tensor) -> dict[str, np.ndarray]:
    """Sums with 0, and with the mean, at the positions that count."""
    _, keep_BT = place.rows(batch, run.cache[place.hook])
    sums: dict[str, np.ndarray] = {}
    for name, row_D in (("zero", torch.zeros_like(mean_D)), ("mean", mean_D)):
        patch = put_rows(row_D.expand(int(keep_BT.sum()), -1), keep_BT)
        sums |= run.compare(name, run.patched(place.hook, patch))
    return sums


def evaluation_batches(data: Dataset, model: HookedModel, config: EvalConfig) -> Sequence[Batch]:
    """Batches, smaller where one batch's logits would be large."""
    size = config.eval_batch
    if model.cfg.family != "vit" and config.functional:
        size = max(1, min(size, LOGIT_BUDGET // (data.tensor.shape[1] * model.cfg.d_vocab)))
    elif model.cfg.family == "vit":
        size *= 8
    return data.minibatches(size)


def reconstruction_sums(
    x_ND: Tensor, x_hat_ND: Tensor, active_N: Tensor, mean_D: Tensor, keep_BT: Tensor
) -> dict[str, np.ndarray]:
    """Sums over each sequence, float64 [B], from which every ratio is made."""
    centred_ND = x_ND - mean_D
    error_N, variance_N = (x_ND - x_hat_ND).pow(2).sum(-1), centred_ND.pow(2).sum(-1)
    per_token = {
        "n": torch.ones(len(x_ND), device=x_ND.device),
        "error": error_N,
        "variance": variance_N,
        "explained": 1 - error_N / variance_N.clamp_min(1e-30),
        "aligned": ((x_hat_ND - mean_D) * centred_ND).sum(-1),
        "cosine": torch.nn.functional.cosine_similarity(x_ND, x_hat_ND, dim=-1),
        "active": active_N,
    }
    sequence_N = keep_BT.nonzero()[:, 0]
    empty = torch.zeros(len(keep_BT), dtype=torch.float64, device=x_ND.device)
    return {name: empty.index_add(0, sequence_N, t.double()).cpu().numpy() for name, t in per_token.items()}


def _ratios(s: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each metric as (numerator, denominator) of a ratio of sums over sequences, from sums over each sequence."""
    found = {
        "l0": (s["active"], s["n"]),
        "explained_variance": (s["variance"] - s["error"], s["variance"]),
        "explained_variance_token": (s["explained"], s["n"]),
        "squared_error": (s["error"], s["n"]),
        "cosine": (s["cosine"], s["n"]),
        "shrinkage_slope": (s["aligned"], s["variance"]),
    }
    if "predictions" in s:
        m = s["predictions"]
        found |= {f"ce_{name}": (s[f"ce_{name}"], m) for name in ("clean", "spliced", "zero", "mean")}
        found["ce_increase"] = (s["ce_spliced"] - s["ce_clean"], m)
        found["ce_recovered"] = (s["ce_zero"] - s["ce_spliced"], s["ce_zero"] - s["ce_clean"])
        found["ce_recovered_mean"] = (s["ce_mean"] - s["ce_spliced"], s["ce_mean"] - s["ce_clean"])
    means = ("kl", "kl_zero", *COUNTED, "output_cosine", "output_cosine_zero", "output_cosine_mean")
    return found | {name: (s[name], s["outputs"]) for name in means if name in s}


def intervals(arrays: dict[str, np.ndarray], config: EvalConfig) -> dict[str, tuple[float, float | None, float | None]]:
    """Each metric with its interval over sequences or images (see `attlas.data.stats`), None where there is none."""
    found: dict[str, tuple[float, float | None, float | None]] = {}
    for name, (above, below) in _ratios(arrays).items():
        if config.n_bootstrap == 0:
            total = below.sum()
            found[name] = (float(above.sum() / total) if total else float("nan"), None, None)
            continue
        if name in COUNTED:
            interval = count_mean(above, level=config.confidence)
        else:
            how = {"n_samples": config.n_bootstrap, "seed": config.eval_seed}
            interval = bootstrap_ratio(above, below, level=config.confidence, **how)
        value, low, high = (float(end) for end in interval)
        found[name] = (value, low, high) if np.isfinite(low) else (value, None, None)
    return found


def metric_rows(
    subject: Reconstructor,
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

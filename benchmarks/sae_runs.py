"""One training run of either library on activations kept in memory: what `sae_quality.py` is made of.

Activations are captured once and cached on disk; every run of a case gets the same rows, in the order that its seed draws
in the mixing buffer. Both libraries' SAEs are measured by the same code on the same held-out rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attlas
from attlas.data.dataset import Dataset
from attlas.data.workspace import Ref
from attlas.saes import SAE, TrainConfig, load_sae
from attlas.saes.activations import capture_rows
from attlas.saes.inputs import held_out, load_inputs
from attlas.saes.positions import positions_for
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.loop import train_loop
from attlas.saes.training.train import SAMPLE_TOKENS, start_trainer

PENALISED = ("standard", "gated", "jumprelu")
CHUNK = 8_192


@dataclass(frozen=True)
class Case:
    """What is trained on: a model's hook, so many tokens of its default data, the dictionary's size and k."""

    model: str
    hook: str
    tokens: int
    held_out: int
    d_sae: int
    k: int
    batch_size: int = 1024

    @property
    def name(self) -> str:
        return f"{self.model}-{self.hook}-{self.tokens}-{self.d_sae}-{self.k}"


@dataclass(frozen=True)
class Job:
    """One run. `lr` and `sparsity` None are the library's own (ours only)."""

    library: str
    arch: str
    n_tokens: int
    lr: float | None
    sparsity: float | None = None
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    """Of our TrainConfig, or of SAELens's configuration of the SAE; "normalise" is of both."""

    @property
    def key(self) -> str:
        """Names the run in the results file."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """The key in ten characters: names the run's autoencoder, also where lines of the results file were taken out."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:10]


class Activations:
    """Training and held-out rows [N, D] of a case, from its cache file or captured now."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        path = folder / f"{case.model}-{case.hook}-{case.tokens}-{case.held_out}.pt"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._capture(), path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        held = torch.load(path, mmap=True, weights_only=True)
        self.train_ND, self.held_ND = held["train"], held["held_out"]

    def _capture(self) -> dict[str, Tensor]:
        case = self.case
        model = attlas.load_model(case.model)
        positions = positions_for(model)

        def rows(inputs: Dataset, n: int) -> Tensor:
            order = torch.randperm(len(inputs.tensor), generator=torch.Generator().manual_seed(0))
            parts: list[Tensor] = []
            for picked in order.split(32):
                parts.append(capture_rows(model, inputs.tensor[picked], [case.hook], positions)[case.hook])
                if sum(map(len, parts)) >= n:
                    break
            return torch.cat(parts)[:n].clone()

        config = TrainConfig(model=case.model, n_tokens=case.tokens * 11 // 10)  # BOS are left out
        return {
            "train": rows(load_inputs(model, config), case.tokens),
            "held_out": rows(held_out(model, n_tokens=case.held_out * 11 // 10), case.held_out),
        }

    def buffer(self, n_tokens: int, seed: int) -> MixingBuffer:
        """The first n_tokens rows (all of them again and again where there are fewer), mixed by the seed."""
        chunks = self.train_ND[:n_tokens].split(CHUNK)
        return MixingBuffer(lambda n: {self.case.hook: chunks[n % len(chunks)]}, 65_536, seed)


def train(job: Job, data: Activations) -> tuple[SAE, float]:
    """The trained SAE, in units of the activations, and the seconds it took."""
    case = data.case
    buffer = data.buffer(job.n_tokens, job.seed)
    buffer.peek(SAMPLE_TOKENS)
    began = time.perf_counter()
    sae = (ours if job.library == "attlas" else saelens)(job, case, buffer)
    return sae, time.perf_counter() - began


def settings(job: Job, case: Case) -> TrainConfig:
    """The run as a training configuration of ours; SAELens takes its schedule from it too."""
    changes = job.changes if job.library == "attlas" else {}
    given: dict[str, Any] = {"model": case.model, "hooks": (case.hook,), "arch": job.arch, "k": case.k}
    given |= {"d_sae": case.d_sae, "n_tokens": job.n_tokens, "batch_size": case.batch_size, "seed": job.seed}
    return TrainConfig(**(given | {"lr": job.lr, "sparsity": job.sparsity} | changes))


def ours(job: Job, case: Case, buffer: MixingBuffer) -> SAE:
    config = settings(job, case)
    sample = buffer.peek(SAMPLE_TOKENS)[case.hook]
    model = attlas.load_model(case.model)
    trainer = start_trainer(case.hook, case.hook, model, sample, config, Ref("cached", "0" * 16))
    train_loop([trainer], buffer, config)
    return trainer.finish()


def saelens(job: Job, case: Case, buffer: MixingBuffer) -> SAE:
    """SAELens's trainer on the same batches and schedule, read back through its own inference format."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(job.seed)
    config = settings(job, case)
    assert job.lr is not None
    changes = dict(job.changes)
    normalise = changes.pop("normalise", True)
    changes |= {"normalize_activations": "expected_average_only_in" if normalise else "none"}
    width = buffer.peek(1)[case.hook].shape[-1]
    sae = _saelens_sae(job, case, config, changes | {"d_in": width, "d_sae": case.d_sae})
    options = SAETrainerConfig(
        total_training_samples=config.n_steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=job.lr,
        lr_end=job.lr / 10,  # must be given; a constant schedule with decay does not use it
        lr_warm_up_steps=round(config.lr_warmup * config.n_steps),
        lr_decay_steps=round(config.lr_decay * config.n_steps),
        dead_feature_window=math.ceil(config.dead_tokens / config.batch_size),
        n_batches_for_norm_estimate=SAMPLE_TOKENS // config.batch_size,
    )

    def batches() -> Iterator[Tensor]:
        while True:
            yield buffer.next_batch(config.batch_size)[case.hook]

    run = SAETrainer(options, sae, batches())
    if normalise:  # estimated on a sample that training sees again, as ours is, so that no batch is used up
        scaler = ActivationScaler()
        sample = iter(buffer.peek(SAMPLE_TOKENS)[case.hook].split(config.batch_size))
        with contextlib.redirect_stderr(io.StringIO()):
            scaler.estimate_scaling_factor(width, sample, options.n_batches_for_norm_estimate)
        run.activation_scaler.scaling_factor = scaler.scaling_factor
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        run.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load_sae(folder)


def _saelens_sae(job: Job, case: Case, config: TrainConfig, changes: dict[str, Any]) -> Any:
    """SAELens's untrained SAE of an architecture, at its defaults but for `changes`."""
    import sae_lens

    warm = round(config.sparsity_warmup * config.n_steps)
    widths = [case.d_sae // n for n in (16, 8, 4, 2, 1)]  # ours by default
    name, own = {
        "topk": ("TopK", {"k": case.k}),
        "batchtopk": ("BatchTopK", {"k": float(case.k)}),
        "matryoshka": ("MatryoshkaBatchTopK", {"k": float(case.k), "matryoshka_widths": widths}),
        "standard": ("Standard", {"l1_coefficient": job.sparsity, "l1_warm_up_steps": warm}),
        "gated": ("Gated", {"l1_coefficient": job.sparsity, "l1_warm_up_steps": warm}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": job.sparsity, "l0_warm_up_steps": warm}),
    }[job.arch]
    config_class = getattr(sae_lens, f"{name}TrainingSAEConfig")
    return getattr(sae_lens, f"{name}TrainingSAE")(config_class(**own | changes))


@torch.no_grad()
def reconstruction(sae: SAE, x_ND: Tensor) -> dict[str, float]:
    """L0, explained variance, and the share of features active on none of the rows."""
    fired_F = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    mean_D = x_ND.mean(0)
    error = variance = active = 0.0
    for part in x_ND.split(CHUNK):
        f_BF = sae.encode(part)
        fired_F |= (f_BF > 0).any(0)
        active += float((f_BF > 0).sum())
        error += float((part - sae.decode(f_BF)).double().pow(2).sum())
        variance += float((part - mean_D).double().pow(2).sum())
    return {
        "l0": active / len(x_ND),
        "explained_variance": 1 - error / variance,
        "dead": float((~fired_F).double().mean()),
    }


@torch.no_grad()
def at_l0(sae: SAE, x_ND: Tensor, l0: float) -> float:
    """Scale the one threshold of a BatchTopK or Matryoshka SAE so that L0 on x is `l0`; the factor.

    SAELens's running threshold starts at 0 and moves by 1 % a batch, so after a short run its SAEs let through more than k
    features and explain more by that alone; at equal L0 the dictionaries are compared.
    """
    low, high, threshold = 0.1, 10.0, sae.threshold.clone()
    for _ in range(20):
        factor = math.sqrt(low * high)
        sae.threshold.copy_(threshold * factor)
        low, high = (factor, high) if float((sae.encode(x_ND) > 0).sum(-1).float().mean()) > l0 else (low, factor)
    return factor


def run_jobs(jobs: list[Job], data: Activations, folder: Path) -> list[dict[str, Any]]:
    """Results in the order of the jobs; what the results file already has is not run again."""
    path = folder / f"{data.case.name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}
    for job in jobs:
        if job.key in done:
            continue
        sae, seconds = train(job, data)
        row = {"key": job.key, **dataclasses.asdict(job), **reconstruction(sae, data.held_ND), "seconds": seconds}
        row["sae"] = str(sae.save(folder / "saes" / f"{data.case.name}-{job.digest}"))
        if job.arch in ("batchtopk", "matryoshka"):
            at_l0(sae, data.train_ND[:CHUNK], data.case.k)
            row["at_k"] = reconstruction(sae, data.held_ND)
        done[job.key] = row
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {
            name: row[name]
            for name in ("library", "arch", "lr", "sparsity", "seed", "l0", "explained_variance", "dead")
        }
        print(json.dumps(shown), flush=True)
    return [done[job.key] for job in jobs]

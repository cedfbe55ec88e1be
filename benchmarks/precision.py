"""What training in each precision comes to: every architecture for 300 steps, against autograd and torch's Adam in float32.

    python benchmarks/precision.py [--seeds 3] [--json]

On planted sparse data (D 32, d_sae 128, batches of 256, 8 of 64 directions a token, and noise). float32 is the fused step
itself; tf32 and bfloat16 are the fused step with inputs of products rounded as a GPU rounds them (on a GPU: as it does).
Prints loss, explained variance and dead features of held-out tokens, and how far each is from the reference of the same seed;
fails where one is farther than `BOUNDS`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
from torch import Tensor

from attlas.kernels.gpu import dense, plain
from attlas.kernels.gpu.precision import product, resolve_precision
from attlas.saes.architectures import ARCHITECTURES
from attlas.saes.base import StepContext
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.trainer import SAETrainer

D, F, K, N, STEPS, HELD_OUT = 32, 128, 8, 256, 300, 4096
BOUNDS = {"loss": 0.02, "explained_variance": 0.005, "dead": 0.08}
"""Relative, absolute, absolute. Rounding decides which of 128 features stay silent: a few more or fewer are no fault."""
PENALTIES = {"standard": 0.3, "gated": 0.3, "jumprelu": 0.1}


def planted(directions: Tensor, n: int, seed: int) -> Tensor:
    """n tokens that are each a positive sum of 8 directions, and noise of a tenth."""
    g = torch.Generator().manual_seed(seed)
    which = torch.rand(n, len(directions), generator=g).topk(8).indices
    weights = torch.zeros(n, len(directions)).scatter(1, which, 0.5 + torch.rand(n, 8, generator=g))
    return weights @ directions + 0.1 * torch.randn(n, D, generator=g)


def rounded(x: Tensor) -> Tensor:
    """To TF32's 10 bits of mantissa, to nearest."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def emulate_tf32(on: bool) -> None:
    """Products of the dense steps, and what TopK chooses by, with inputs as tensor cores round them."""
    dense.product = (lambda a, b, dtype: product(rounded(a), rounded(b), dtype)) if on else product
    plain.choose = (lambda x, W, b, k: _choose(rounded(x), rounded(W), b, k)) if on else _choose


_choose = plain.choose


def trained(arch: str, precision: str, seed: int, device: str) -> dict[str, float]:
    """Train, and measure on held-out tokens."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(64, D, generator=g), dim=1)
    reference = precision == "autograd"
    emulated = precision == "tf32" and device == "cpu"
    config = TrainConfig(
        arch=arch, k=K, d_sae=F, n_tokens=STEPS * N, batch_size=N, seed=seed, sparsity=PENALTIES.get(arch), dead_after=20 * N
    )  # fmt: skip
    sample = planted(directions, 2048, seed + 1000).to(device)
    trainer = SAETrainer.start(
        "sae", "hook", config.sae_config(D), sample, seed=seed, learning_rate=config.learning_rate(D), normalise=True,
        active_subspace=False, variance=1.0, fused=not reference, clip=config.clip,
        precision="float32" if reference or emulated else precision,
    )  # fmt: skip
    if not reference and device == "cpu" and precision != "bfloat16":  # else the CPU's own step would run
        from attlas.saes.training.fused import gpu_step

        fused = trainer.fused
        if fused is None:
            from attlas.saes.training.fused import FusedStep

            fused = trainer.fused = FusedStep(trainer.sae, 6.25e-10, clip=config.clip, precision="bfloat16")
        fused._kernel = gpu_step(trainer.sae, precision="float32", clip=config.clip, options=fused.options)
        fused._share()
    emulate_tf32(emulated)
    for step in range(STEPS):
        x = planted(directions, N, 10_000 * (seed + 1) + step).to(device) * trainer.scale
        rate, dead = config.lr_factor(step), trainer.dead(config.dead_tokens)
        if trainer.fused is not None:
            terms = trainer.fused.step(x, dead, trainer.learning_rate * rate, config.penalty_scale(step))
        else:
            terms = trainer.sae.loss(x, StepContext(dead_F=dead, penalty_scale=config.penalty_scale(step)))
            trainer.optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            trainer.sae.before_step()
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(trainer.sae.parameters(), config.clip)
            trainer.set_learning_rate(rate)
            trainer.optimizer.step()
            trainer.sae.after_step()
        trainer.count(terms.fired_F, N)
    emulate_tf32(False)
    x = planted(directions, HELD_OUT, seed + 2000).to(device) * trainer.scale
    with torch.no_grad():
        loss = trainer.sae.loss(x, StepContext()).total
        error = (x - trainer.sae(x)).square().sum() / (x - x.mean(0)).square().sum()
        dead_share = 1 - (trainer.sae.encode(x) > 0).any(0).float().mean()
    return {"loss": float(loss), "explained_variance": 1 - float(error), "dead": float(dead_share)}


def distance(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """From the reference: the loss in relation to it, the others as they are."""
    far = {name: abs(ours[name] - theirs[name]) for name in ours}
    return far | {"loss": far["loss"] / theirs["loss"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--archs", default=",".join(ARCHITECTURES))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, failed = [], 0
    for arch in given.archs.split(","):
        references = [trained(arch, "autograd", seed, device) for seed in range(given.seeds)]
        for precision in ("autograd", "float32", "tf32", "bfloat16"):
            if device == "cuda" and precision != "autograd":
                resolve_precision(precision, torch.device(device))
            same = precision == "autograd"
            runs = references if same else [trained(arch, precision, seed, device) for seed in range(given.seeds)]
            far = [distance(a, b) for a, b in zip(runs, references, strict=True)]
            row = {"arch": arch, "precision": precision, "seeds": given.seeds, "device": device}
            row |= {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            row |= {f"far_{name}": max(f[name] for f in far) for name in BOUNDS}
            row["within"] = all(row[f"far_{name}"] <= most for name, most in BOUNDS.items())
            failed += not row["within"]
            rows.append(row)
            print(
                f"{arch:11} {precision:9} loss {row['loss']:8.4f}  EV {row['explained_variance']:.4f}  dead {row['dead']:.3f}"
                f"   farthest of {given.seeds} seeds: loss {row['far_loss']:.2%}, EV {row['far_explained_variance']:.4f}, "
                f"dead {row['far_dead']:.3f}{'' if row['within'] else '  OUT OF BOUNDS'}",
                file=sys.stderr,
                flush=True,
            )
    if given.json:
        print(json.dumps({"bounds": BOUNDS, "rows": rows}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

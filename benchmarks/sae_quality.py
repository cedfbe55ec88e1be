"""Sparse autoencoders: Attlas against SAELens, each at its own best learning rate of one stated sweep.

    python benchmarks/sae_quality.py --folder quality                        # hours on one core; goes on where it stopped
    python benchmarks/sae_quality.py --folder quality --quick --archs topk    # minutes

Both libraries get the same activations in the same order, the same width, k, batch size, schedule (warm-up, decay, warm-up of
λ), input scale and dead-feature window, and are measured by the same code on the same held-out rows; everything else is each
library's default. Every rate is run with the first seed; the best one and its neighbours with all seeds. `standard`, `gated`
and `jumprelu` are run over several λ, and a rate is as good as the explained variance at L0 = k, interpolated in log L0
between its runs, as CE recovered and dead features at L0 = k are. Explained variance is 1 − Σ‖x−x̂‖²/Σ‖x−x̄‖² over all
held-out rows, dead features those active on none of them, CE recovered that of `attlas.saes.evaluate` against zero ablation.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_runs import PENALISED, Activations, Case, Job, run_jobs

import attlas
from attlas.saes import ARCHITECTURES, EvalConfig, TrainConfig, load_sae
from attlas.saes.evaluation.measure import evaluate_all
from attlas.saes.inputs import held_out

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SPARSITIES = {"standard": (1.0, 2.0, 4.0, 8.0), "gated": (1.5, 3.0, 6.0), "jumprelu": (0.25, 0.5, 1.0, 2.0)}
Rows = list[dict[str, Any]]


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    tokens, d_sae = (
        (args.tokens or 100_000, args.d_sae or 384) if args.quick else (args.tokens or 300_000, args.d_sae or 1536)
    )
    case = Case(args.model, args.hook, tokens, args.held_out, d_sae, args.k)
    data = Activations(case, args.folder)
    print(f"{case}\nrates {args.rates}, seeds {args.seeds}, {args.threads} thread", flush=True)
    finals = []
    for arch in args.archs:
        for library in ("attlas", "saelens"):
            finals.append(sweep(library, arch, data, args))
        finals.append(defaults(arch, data, args))
    with_ce(finals, case, args.ce_tokens)
    for final in finals:
        print(row(final, args.k))


def defaults(arch: str, data: Activations, args: argparse.Namespace) -> Rows:
    """Ours as it comes, no rate given."""
    job = Job("attlas", arch, data.case.tokens, None)
    return run_jobs([dataclasses.replace(job, seed=seed) for seed in args.seeds], data, args.folder)


def sweep(library: str, arch: str, data: Activations, args: argparse.Namespace) -> Rows:
    """The runs of the best rate: all rates with the first seed, then the best and its neighbours with all."""
    sparsities = SPARSITIES[arch] if arch in PENALISED else (None,)

    def runs(rate: float, seed: int) -> Rows:
        jobs = [Job(library, arch, data.case.tokens, rate, sparsity, seed) for sparsity in sparsities]
        return run_jobs(jobs, data, args.folder)

    first = [quality(runs(rate, args.seeds[0]), args.k) for rate in args.rates]
    best = first.index(max(first))
    near = args.rates[max(0, best - 1) : best + 2]
    results = {rate: [runs(rate, seed) for seed in args.seeds] for rate in near}
    rate = max(near, key=lambda r: statistics.mean(quality(seeded, args.k) for seeded in results[r]))
    return [result for seeded in results[rate] for result in seeded]


def quality(runs: Rows, k: float) -> float:
    """Explained variance at L0 = k of one seed's runs; −∞ where they do not reach it: a denser code explains more."""
    if len(runs) == 1:
        return float(runs[0].get("at_k", runs[0])["explained_variance"])
    found = interpolated([(r["l0"], r["explained_variance"]) for r in runs], k)
    return -math.inf if math.isnan(found) else found


def interpolated(points: list[tuple[float, float]], l0: float) -> float:
    """A number at an L0, linear in log L0 between the two runs, (L0, number), around it; NaN outside."""
    points = sorted(points)
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if low <= l0 <= high:
            share = (math.log(l0) - math.log(low)) / max(math.log(high) - math.log(low), 1e-12)
            return at_low + share * (at_high - at_low)
    return math.nan


def with_ce(finals: list[Rows], case: Case, n_tokens: int) -> None:
    """Add CE recovered to the chosen runs, measured from shared clean passes."""
    model = attlas.load_model(case.model)
    rows = [r for final in finals for r in final]
    saes = [(load_sae(r["sae"]), case.hook) for r in rows]
    inputs = held_out(model, n_tokens=n_tokens)
    for result, found in zip(
        rows, evaluate_all(saes, model, inputs, EvalConfig(controls=(), n_bootstrap=0)), strict=True
    ):
        result["ce"] = found.value("ce_recovered")


def row(final: Rows, k: float) -> str:
    """A line of the table: mean ± standard deviation over seeds of explained variance, CE recovered and dead features."""
    first = final[0]
    cells = [f"{first['library']} {first['arch']}", f"{first['lr']:g}" if first["lr"] else "default"]
    for sparsity in sorted({r["sparsity"] for r in final}, key=str):
        group = [r for r in final if r["sparsity"] == sparsity]
        at_k = [r.get("at_k", r) for r in group]
        parts = [
            spread([r["l0"] for r in at_k], 1),
            spread([r["explained_variance"] for r in at_k]),
            spread([r["ce"] for r in group]),
            spread([r["dead"] for r in at_k]),
        ]
        cells.append(("" if sparsity is None else f"λ {sparsity:g}: ") + " / ".join(parts))
    if first["arch"] in PENALISED and len(cells) > 3:
        seeds = sorted({r["seed"] for r in final})
        parts = []
        for name in ("explained_variance", "ce", "dead"):
            fronts = [[(r["l0"], r[name]) for r in final if r["seed"] == seed] for seed in seeds]
            parts.append(spread([interpolated(front, k) for front in fronts]))
        cells.append(f"at L0 {k}: {' / '.join(parts)}")
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int = 4) -> str:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0  # NaN stays, where L0 = k was not reached
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="cached activations, results (JSON lines), SAEs")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--hook", default="blocks.3.attn.hook_z")
    parser.add_argument("--archs", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=None, help="default 300,000; 100,000 with --quick")
    parser.add_argument("--d-sae", type=int, default=None, help="default 1,536; 384 with --quick")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=32_768, help="rows for explained variance and dead features")
    parser.add_argument("--ce-tokens", type=int, default=8_192, help="tokens for CE recovered")
    parser.add_argument("--quick", action="store_true", help="a smaller dictionary and fewer tokens")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""One SAE training step (forward, backward, Adam): every architecture against SAELens's class of the same name, and TopK
at more sizes against other libraries and dense torch.

python benchmarks/sae_step.py             every table
python benchmarks/sae_step.py --busy 2    idle, and beside two spinning processes: every architecture, and TopK's peers
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from busy import asked, compare_busy, report_busy
from common import compare, main, report
from sae_architectures import ARCHITECTURES, pair

from attlas.kernels import StepOptions, TopKStep

SHAPES = ((256, 8192, 32, 2048), (768, 12288, 32, 1024), (256, 65536, 32, 256))


def contestants(D: int, F: int, k: int, N: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """Ours, SAELens (its defaults, and without its norm rescaling, which is our function), torch eager, the bare GEMM."""
    torch.manual_seed(0)
    x = torch.randn(N, D, device=device)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D, device=device), dim=-1)
    start = [W_dec.t().clone(), torch.zeros(F, device=device), W_dec, torch.zeros(D, device=device)]
    fused, lazy = TopKStep(*start, StepOptions(k=k)), TopKStep(*start, StepOptions(k=k, lazy=True))
    found: dict[str, Callable[[], object]] = {
        "attlas TopKStep": lambda: fused.step(x),
        "attlas TopKStep, lazy Adam": lambda: lazy.step(x),
    }
    try:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput
    except ImportError:
        print("SAELens: not installed", file=sys.stderr)
    else:
        for rescale in (True, False):
            cfg = TopKTrainingSAEConfig(d_in=D, d_sae=F, k=k, rescale_acts_by_decoder_norm=rescale, device=device)
            sae = TopKTrainingSAE(cfg)
            adam = torch.optim.Adam(sae.parameters(), lr=1e-4)

            def saelens(sae=sae, adam=adam) -> None:
                step = TrainStepInput(
                    sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
                )
                adam.zero_grad()
                sae.training_forward_pass(step).loss.backward()
                adam.step()

            found[f"SAELens{'' if rescale else ', no norm rescaling'}"] = saelens
    params = [p.clone().requires_grad_() for p in start]
    adam_fused = torch.optim.Adam(params, lr=1e-4, fused=True)

    def eager() -> None:
        adam_fused.zero_grad()
        top = ((x - params[3]) @ params[0] + params[1]).topk(k)
        f = x.new_zeros(N, F).scatter(1, top.indices, top.values.relu())
        (f @ params[2] + params[3] - x).square().sum(-1).mean().backward()
        adam_fused.step()

    found["torch eager, dense, fused Adam"] = eager
    found["the encoder's GEMM alone"] = lambda: x @ start[0]
    return found | _sparsify(x, F, k) | _dictionary_learning(x, F, k)


def step_flops(D: int, F: int, k: int, N: int) -> float:
    """Least arithmetic of a step: encode; decode, its gradient, and those of both matrices."""
    return 2.0 * N * D * F + 8.0 * N * k * D


def _sparsify(x: torch.Tensor, F: int, k: int) -> dict[str, Callable[[], object]]:
    """EleutherAI's: its fused encoder and decoder, fused Adam, decoder rows back to norm 1."""
    if not torch.cuda.is_available():
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # else its decoder calls Triton on the CPU, and fails
    try:
        from sparsify import SparseCoder, SparseCoderConfig
    except ImportError as error:
        print(f"sparsify: not installed ({error}); pip install 'attlas[formats]'", file=sys.stderr)
        return {}
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=F, k=k), device=x.device)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        adam.zero_grad()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        sae.set_decoder_norm_to_unit_norm()

    return {"sparsify": step}


def _dictionary_learning(x: torch.Tensor, F: int, k: int) -> dict[str, Callable[[], object]]:
    """Its own TopKTrainer's update."""
    try:
        from dictionary_learning.trainers.top_k import TopKTrainer
    except ImportError as error:
        print(f"dictionary_learning: not installed ({error}); pip install 'attlas[formats]'", file=sys.stderr)
        return {}
    trainer = TopKTrainer(10**6, x.shape[1], F, k, layer=0, lm_name="none", lr=1e-4, device=str(x.device))
    return {"dictionary_learning": lambda: trainer.update(1, x)}


def run(rounds: int = 7, spinning: int = 0) -> dict:
    if spinning:
        return {"results": busy(spinning, rounds)}
    results = [
        report(f"{arch} step, D {D}, F {F}, k {k}, N {N}, float32", compare(pair(arch, D, F, k, N), rounds))
        for arch in ARCHITECTURES
        for D, F, k, N in SHAPES[:1]
    ]
    for D, F, k, N in SHAPES:
        timings = compare(contestants(D, F, k, N), rounds)
        size = 4.0 * (N * D + 6 * 2 * D * F)  # x; each matrix and its two moments, read and written
        results.append(report(f"TopK step, D {D}, F {F}, k {k}, N {N}, float32", timings, step_flops(D, F, k, N), size))
    return {"results": results}


def busy(n: int, rounds: int) -> list[dict]:
    """Every architecture beside SAELens, and TopK beside all peers, on a machine with n spinning processes."""
    D, F, k, N = SHAPES[0]
    sets = {arch: pair(arch, D, F, k, N) for arch in ARCHITECTURES} | {"topk, all peers": contestants(D, F, k, N)}
    return [
        report_busy(f"{name} step, D {D}, F {F}, k {k}, N {N}, float32", compare_busy(each, n, rounds), n)
        for name, each in sets.items()
    ]


if __name__ == "__main__":
    main(lambda: run(spinning=asked()))

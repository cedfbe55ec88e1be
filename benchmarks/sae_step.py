"""One TopK SAE training step (forward, backward, Adam): ours against SAELens and dense torch.

python benchmarks/sae_step.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import compare, main, report

from attlas.kernels import StepOptions, TopKStep

SHAPES = ((256, 8192, 32, 2048), (768, 12288, 32, 1024))


def contestants(D: int, F: int, k: int, N: int) -> dict[str, Callable[[], object]]:
    """Ours, SAELens (its defaults, and without its norm rescaling, which is our function), torch eager, the bare GEMM."""
    torch.manual_seed(0)
    x = torch.randn(N, D)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D), dim=-1)
    start = [W_dec.t().clone(), torch.zeros(F), W_dec, torch.zeros(D)]
    fused = TopKStep(*start, StepOptions(k=k))
    found: dict[str, Callable[[], object]] = {"attlas TopKStep": lambda: fused.step(x)}
    try:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput
    except ImportError:
        print("SAELens: not installed", file=sys.stderr)
    else:
        for rescale in (True, False):
            cfg = TopKTrainingSAEConfig(d_in=D, d_sae=F, k=k, rescale_acts_by_decoder_norm=rescale)
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
    for package in ("sparsify", "dictionary_learning"):
        try:
            __import__(package)
        except ImportError:
            print(f"{package}: not installed", file=sys.stderr)
    return found


def run(rounds: int = 7) -> dict:
    results = []
    for D, F, k, N in SHAPES:
        timings = compare(contestants(D, F, k, N), rounds)
        results.append(report(f"TopK step, D {D}, F {F}, k {k}, N {N}, float32", timings))
    return {"results": results}


if __name__ == "__main__":
    main(run)

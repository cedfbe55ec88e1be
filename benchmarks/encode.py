"""TopK encode: ours against the dense product followed by torch.topk, eager and compiled.

python benchmarks/encode.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import compare, main, report

from attlas.kernels import topk_encode

SHAPES = ((256, 8192, 32, 2048), (768, 24576, 32, 1024))


def run(rounds: int = 7) -> dict:
    results = []
    for D, F, k, N in SHAPES:
        torch.manual_seed(0)
        x, W, b = torch.randn(N, D), torch.randn(D, F) / D**0.5, torch.zeros(F)

        def dense(x=x, W=W, b=b, k=k) -> object:
            return (x @ W + b).topk(k)

        found: dict[str, Callable[[], object]] = {
            "attlas topk_encode": lambda x=x, W=W, b=b, k=k: topk_encode(x, W, b, k),  # type: ignore[misc]
            "torch eager": dense,
            "the GEMM alone": lambda x=x, W=W: x @ W,  # type: ignore[misc]
        }
        try:
            compiled = torch.compile(dense)
            compiled()
            found["torch.compile"] = compiled
        except Exception as error:  # no C++ compiler at hand, for one
            print(f"torch.compile: does not work here ({type(error).__name__})", file=sys.stderr)
        size = 4.0 * (N * D + D * F + F + 3 * N * k)  # x, W_enc, b_enc; values of 4 bytes and indices of 8
        results.append(report(f"encode, D {D}, F {F}, k {k}, N {N}", compare(found, rounds), 2.0 * N * D * F, size))
    return {"results": results}


if __name__ == "__main__":
    main(run)

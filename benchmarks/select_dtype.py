"""What choosing features in bfloat16 changes: rows whose set differs, and what that costs.

    python benchmarks/select_dtype.py                       # gpt2-mini, layer 3, three seeds: some minutes on one core
    python benchmarks/select_dtype.py --n-tokens 20000 --seeds 0

TopK autoencoders are trained on a hook's activations twice from each seed, choosing in float32 and in bfloat16, and read on
held-out rows. On a CPU the choice in bfloat16 is computed as a GPU does: inputs rounded, products summed in float32, the sum
rounded, equal ones to the lower index. A choice in float64 is the control: where float32's own rounding decides.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from torch import Tensor

import attlas
from attlas.kernels import topk_encode
from attlas.saes import SAE, TrainConfig, train_sae
from attlas.saes.activations import capture_rows
from attlas.saes.inputs import held_out
from attlas.saes.positions import positions_for


def main() -> None:
    args = arguments()
    model = attlas.load_model(args.model)
    inputs = held_out(model, n_tokens=args.held_out * 11 // 10)
    x = capture_rows(model, inputs.tensor, [args.hook], positions_for(model))[args.hook][: args.held_out]
    rows = []
    for seed in args.seeds:
        for select_dtype in ("float32", "bfloat16"):
            config = TrainConfig(
                model=args.model,
                hooks=(args.hook,),
                k=args.k,
                n_tokens=args.n_tokens,
                seed=seed,
                select_dtype=select_dtype,  # type: ignore[arg-type]
            )
            (sae,) = train_sae(config, model=model).saes.values()
            rows.append({"seed": seed, "trained in": select_dtype} | compare(sae, x))
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"tokens trained on": args.n_tokens, "rows": len(x), "k": args.k} | spread(rows)))


def compare(sae: SAE, x: Tensor) -> dict[str, float]:
    """Rows whose set differs from float32's, features that differ in such a row, and explained variance of both."""
    _, exact = encode(sae, x, "float32")
    _, rounded = encode(sae, x, "bfloat16")
    _, control = encode(sae.double(), x.double(), "float32")
    sae.float()
    differ = missing(exact, rounded)
    return {
        "rows that differ, %": 100 * float((differ > 0).float().mean()),
        "features that differ, of such a row": float(differ[differ > 0].float().mean()),
        "rows where float32 and float64 differ, %": 100 * float((missing(exact, control) > 0).float().mean()),
        "explained variance": explained(sae, x, "float32"),
        "explained variance, chosen in bfloat16": explained(sae, x, "bfloat16"),
    }


@torch.no_grad()
def encode(sae: SAE, x: Tensor, select_dtype: str) -> tuple[Tensor, Tensor]:
    return topk_encode(x, sae.W_enc, sae.b_enc, sae.cfg.k, b_dec=sae.b_dec, select_dtype=select_dtype)  # type: ignore[arg-type]


def missing(a: Tensor, b: Tensor) -> Tensor:
    """How many features of each row of a [N, k] are not in b's."""
    return (~(a.unsqueeze(2) == b.unsqueeze(1)).any(2)).sum(1)


def explained(sae: SAE, x: Tensor, select_dtype: str) -> float:
    x_hat = sae.decode_sparse(*encode(sae, x, select_dtype))
    return float(1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def spread(rows: list[dict]) -> dict[str, str]:
    """Mean (least … most) over seeds, by what the training chose in."""
    found = {}
    for select_dtype in ("float32", "bfloat16"):
        mine = [row for row in rows if row["trained in"] == select_dtype]
        for name in list(mine[0])[2:]:
            values = [row[name] for row in mine]
            found[f"{select_dtype}: {name}"] = f"{statistics.mean(values):.4g} ({min(values):.4g}…{max(values):.4g})"
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--hook", default="blocks.3.attn.hook_z")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--n-tokens", type=int, default=200_000)
    parser.add_argument("--held-out", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()

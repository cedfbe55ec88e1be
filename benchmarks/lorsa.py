"""A Lorsa beside a TopK autoencoder of hook_z at equal L0 and equal parameters, on one layer's output, over seeds.

python benchmarks/lorsa.py --n-tokens 100000 --layer 3 --k 16

Both train on the same tokens in as many passes; the autoencoder gets as many features as make its numbers equal to the Lorsa's
(its z·W_O uses the model's own W_O, which is not counted). A seed is one of starting weights and of the order of the data.
Means, least and most of the seeds; held-out text.
"""

from __future__ import annotations

import argparse
import json
import time

from attlas.interp import load_model
from attlas.saes import EvalConfig, LorsaTrainConfig, TrainConfig, evaluate_layer, held_out, train_lorsa, train_sae

METRICS = ("l0", "explained_variance", "ce_recovered", "ce_increase", "dead_fraction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--n-tokens", type=int, default=100_000)
    parser.add_argument("--eval-tokens", type=int, default=16_384)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model, device="cpu")
    data = held_out(model, n_tokens=args.eval_tokens)
    hook = f"blocks.{args.layer}.attn.hook_z"
    found: dict[str, list[dict[str, float]]] = {"lorsa": [], "topk": []}
    for seed in range(args.seeds):
        train = TrainConfig(hooks=(hook,), k=args.k, n_tokens=args.n_tokens, seed=seed)
        start = time.process_time()
        own = TrainConfig(k=args.k, n_tokens=args.n_tokens, seed=seed)
        lorsa = train_lorsa(LorsaTrainConfig(own, args.layer), model=model).lorsa
        between = time.process_time()
        width = model.cfg.n_heads * model.cfg.d_head
        features = (lorsa.cfg.n_parameters - width) // (2 * width + 1)
        equal = TrainConfig(**{**vars(train), "d_sae": features})
        sae = train_sae(equal, model=model, progress=False).saes[hook]
        seconds = {"lorsa": between - start, "topk": time.process_time() - between}
        result = evaluate_layer({"lorsa": lorsa, "topk": sae}, model, data, EvalConfig(n_bootstrap=0))
        for name, subject in (("lorsa", lorsa), ("topk", sae)):
            row = {metric: result.value(metric, name) for metric in METRICS}
            row |= {"parameters": sum(p.numel() for p in subject.parameters()), "cpu_seconds": seconds[name]}
            found[name].append(row)
            print(f"seed {seed} {name:5}", " ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    spread: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, rows in found.items():
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        spread[name] = {key: (sum(v) / len(v), min(v), max(v)) for key, v in columns.items()}
    print(json.dumps({"mean, least, most": spread}, indent=1))


if __name__ == "__main__":
    main()

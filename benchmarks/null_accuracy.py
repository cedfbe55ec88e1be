"""How far the null that features alike share is from the null of each feature by itself.

    python benchmarks/null_accuracy.py                            # trains TopK with the defaults: about 5 minutes
    python benchmarks/null_accuracy.py --sae RUN_FOLDER --features 100

Features with like head norms and density share a null (see `attlas.analyses.features.null`). Here chosen features get one of
their own: `draws` directions with exactly that feature's norms and density, scored on the same tokens. Both nulls place the
feature's score; what is printed is how far apart the two percentiles are (median and 95th percentile over features), how far
those of two independent halves of the exact null are (what chance alone makes), and how many scores are beyond the 95th
percentile of the exact null, of the one in use, and of both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_labels import HOOK, progress

from attlas.analyses.features.directions import SCORES, Examples, Sample, encoder_directions, fire, sample, score
from attlas.analyses.features.null import NullConfig, NullScores, null_directions, null_scores
from attlas.data.text import load_tokens
from attlas.interp import HookedModel, load_model
from attlas.saes import SAE, TrainConfig, load_sae, train_sae
from attlas.saes.positions import positions_for


def percentile(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """[n] part of each row of null [n, R] below a value, ties counted half; NaN ones left out."""
    known = np.isfinite(null)
    below = (null < value[:, None]).sum(1) + 0.5 * (null == value[:, None]).sum(1)
    return below / np.maximum(known.sum(1), 1)


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Per score: differences of percentiles, and agreement beyond the 95th."""
    track = progress(args)
    model = load_model("gpt2-mini", device="cpu")
    text = load_tokens("embedded:val", model.tokenizer, seq_len=256, n_tokens=args.tokens, seed=0)
    if args.sae is not None:
        sae = load_sae(args.sae)
    else:
        config = TrainConfig(hooks=(HOOK,), n_tokens=args.train_tokens, d_sae=args.d_sae, seed=args.seed)
        sae = train_sae(config, model=model, track=track).saes[HOOK]
    places = positions_for(model, None, None, sae.cfg)
    found = sample(model, sae, text, HOOK, n_tokens=args.tokens, n_top=32, batch_size=16, positions=places, track=track)
    config_null = NullConfig(args.draws, n_tokens=args.tokens, seed=args.seed)
    shared = null_scores(model, sae, found, HOOK, config_null, n_top=32, batch_size=16, track=track)
    able = np.flatnonzero((shared.profiles.of >= 0) & np.isfinite(shared.scores["local"]))
    if not len(able):
        raise SystemExit(
            f"no feature has a score and a null on {args.tokens} tokens; give more --tokens or --train-tokens"
        )
    chosen = np.sort(np.random.default_rng(args.seed).choice(able, min(args.features, len(able)), replace=False))
    exact = exact_null(model, sae, found, chosen, args)
    scores = {name: compared(name, chosen, shared, exact[name]) for name in SCORES}
    return {"n_features": len(chosen), "n_of": len(able), "draws": args.draws, "tokens": args.tokens, "scores": scores}


def exact_null(
    model: HookedModel, sae: SAE, found: Sample, chosen: np.ndarray, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """name → [n, R] scores of R directions with each chosen feature's own head norms and density."""
    track, R, H = progress(args), args.draws, model.cfg.n_heads
    directions = encoder_directions(sae)
    norms = directions[chosen].unflatten(-1, (H, -1)).norm(dim=-1)
    drawn = null_directions(norms[:, None].expand(-1, R, -1), directions.shape[1] // H, args.seed + 1)
    x, parts = found.x.flatten(0, 1), []
    for i in track(range(len(chosen)), "exact null: directions", len(chosen)):
        pre = (drawn[i] @ x.T).view(R, *found.bar.shape)
        at = fire(pre, found.bar, found.stream.count[int(chosen[i])].expand(R), 32)
        parts.append(Examples(at.direction + i * R, at.sequence, at.position, at.activation))
    columns = zip(*((p.direction, p.sequence, p.position, p.activation) for p in parts), strict=True)
    examples = Examples(*(torch.cat(column) for column in columns))
    scored = score(model, HOOK, found.tokens, examples, drawn.flatten(0, 1), batch_size=16, track=track)
    return {name: scored[name].reshape(len(chosen), R) for name in SCORES}


def compared(name: str, chosen: np.ndarray, shared: NullScores, own: np.ndarray) -> dict[str, Any]:
    """How a score's percentiles under the exact null `own` [n, R] and under the shared ones differ."""
    mine = shared.scores[name][chosen]
    exact = percentile(mine, own)
    group = percentile(mine, shared.null[name][shared.profiles.of[chosen]])
    used = 1 - shared.p(name)[chosen]
    halves = percentile(mine, own[:, ::2]) - percentile(mine, own[:, 1::2])
    return {
        "group": _sizes(exact - group),
        "used": _sizes(exact - used),
        "halves": _sizes(halves),
        "bias": float(np.mean(used - exact)),
        "beyond_exact": int((exact > 0.95).sum()),
        "beyond_used": int((used > 0.95).sum()),
        "beyond_both": int(((exact > 0.95) & (used > 0.95)).sum()),
    }


def _sizes(differences: np.ndarray) -> list[float]:
    """Median and 95th percentile of the differences' sizes."""
    return [float(q) for q in np.quantile(np.abs(differences), (0.5, 0.95))]


def table(found: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    yield (
        f"{found['n_features']} of {found['n_of']} scored features, {found['draws']} draws each, {found['tokens']:,} tokens; "
        "differences of percentiles, median (95th)"
    )
    yield "\n| score | exact − group's | exact − in use | halves of the exact | bias | beyond 95: exact | in use | both |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, r in found["scores"].items():
        sizes = " | ".join(f"{r[key][0]:.3f} ({r[key][1]:.3f})" for key in ("group", "used", "halves"))
        beyond = " | ".join(str(r[f"beyond_{key}"]) for key in ("exact", "used", "both"))
        yield f"| {name} | {sizes} | {r['bias']:+.3f} | {beyond} |"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae", type=Path, default=None, help="folder of an autoencoder, in place of training")
    parser.add_argument("--features", type=int, default=200, help="features that get a null of their own")
    parser.add_argument("--draws", type=int, default=100, help="directions of each null")
    parser.add_argument("--tokens", type=int, default=8_192, help="held-out tokens that features are scored on")
    parser.add_argument("--train-tokens", type=int, default=TrainConfig.n_tokens)
    parser.add_argument("--d-sae", type=int, default=None, help="default 8 × the hook's width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", dest="progress", action="store_false", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    found = measure(args)
    print(json.dumps(found) if args.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()

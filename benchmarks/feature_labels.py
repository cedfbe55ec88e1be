"""Families of a trained, a random and a shuffled dictionary, at the last checkpoint and before the induction heads.

    python benchmarks/feature_labels.py                             # 3 seeds, 300,000 tokens of training: about 15 minutes
    python benchmarks/feature_labels.py --sae RUN_FOLDER --seeds 0  # an autoencoder of one's own, on the last checkpoint
    python benchmarks/feature_labels.py --checkpoints last --archs topk batchtopk --d-sae 768 3072 --k 8 16 --no-survey

The third looks in many dictionaries: every architecture with every width and k, each with its controls.

Trains a TopK autoencoder with the defaults for each seed and checkpoint, makes a random dictionary (unit directions about
the mean activation, as many, as many active a token) and one of the trained weights with the entries of each direction
permuted, and labels the features of all three by `attlas.analyses.features.families`: a share is of the features that have
enough examples to be scored. Beside the labels stands how many features have the induction score's excess (q of 0.05 or
less in their dictionary, and the floor), and how many of these are specific. Then the induction features with their
specificity and cause, each with its 95 % interval over examples, and the head survey beside its random dictionaries, for
the trained and the random dictionary of the first seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import environment
from rich.console import Console

from attlas.analyses.features.families import FALSE_DISCOVERIES, FLOORS, families
from attlas.analyses.features.null import NullConfig
from attlas.analyses.features.survey import HeadSurveyConfig, head_survey
from attlas.cli.progress import reporter
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset, load_tokens
from attlas.interp import HookedModel, load_model
from attlas.saes import ARCHITECTURES, SAE, TrainConfig, load_sae, train_sae
from attlas.saes.architectures import architecture
from attlas.saes.evaluation.controls import random_dictionary, shuffled

HOOK = "blocks.3.attn.hook_z"
FAMILIES = ("induction", "local", "long-range")
CHECKPOINTS = ("last", "step-00250")
KINDS = ("trained", "random", "shuffled")


def progress(args: argparse.Namespace) -> Track:
    """Bars on a terminal, lines in a log."""
    return reporter(Console(stderr=True)) if args.progress else no_track


def dictionaries(sae: SAE, model: HookedModel, text: TokenDataset, hook: str, seed: int) -> Iterator[tuple[str, SAE]]:
    """The autoencoder and its two controls."""
    x = model.capture(text.tokens[:16], hook)[hook].flatten(-2)[:, 1:].flatten(0, 1)
    yield "trained", sae
    active = float((sae.encode(x[:1024]) > 0).sum(-1).float().mean())
    yield "random", random_dictionary(sae, x.mean(0), round(active), seed)
    yield "shuffled", shuffled(sae, seed)


def labelled(model: HookedModel, sae: SAE, text: TokenDataset, hook: str, args: argparse.Namespace) -> dict[str, Any]:
    """Counts of labels, and what is known of the induction features."""
    config = NullConfig(n_draws=args.draws, n_tokens=args.tokens, seed=0)
    found = families(model, sae, text, hook, config, track=progress(args))
    scored = [s for s in found.values() if s.score["local"] == s.score["local"]]
    excess = [
        s for s in scored if s.q["induction"] <= FALSE_DISCOVERIES and s.score["induction"] >= FLOORS["induction"]
    ]
    return {
        "n_features": sae.cfg.d_sae,
        "n_scored": len(scored),
        "labels": {name: sum(s.label == name for s in scored) for name in FAMILIES},
        "n_excess": len(excess),
        "n_specific": sum(s.source_entropy < s.source_entropy_null for s in excess),
        "of": {f: s.label for f, s in found.items()},
        "induction": [{"feature": f, **s.row()} for f, s in found.items() if s.label == "induction"],
    }


def run(_rounds: int = 0, argv: Sequence[str] = ()) -> dict[str, Any]:
    """For `attlas bench feature_labels`: the tables on stderr, and their numbers."""
    args = arguments(argv)
    found = measure(args)
    for line in (title(args), *tables(found)):
        _say(line)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All tables as numbers; a line is printed as each comes."""
    rows, surveys = [], []
    for checkpoint in args.checkpoints:
        folder = EMBEDDED_DIR / "gpt2-mini" / ("" if checkpoint == "last" else f"checkpoints/{checkpoint}")
        model = load_model(folder, device="cpu")
        text = load_tokens("embedded:val", model.tokenizer, seq_len=256, n_tokens=args.tokens, seed=0)
        for (arch, d_sae, k), seed in itertools.product(variants(args), args.seeds):
            sae = _autoencoder(model, arch, d_sae, k, seed, args)
            of = f"{arch}, {sae.cfg.d_sae} features" + (f", k {k}" if sae.chooses_k else "")
            of = of if len(variants(args)) > 1 else ""
            for kind, other in dictionaries(sae, model, text, args.hook, seed):
                if kind not in args.kinds:
                    continue
                row = {"checkpoint": checkpoint, "variant": of, "dictionary": kind, "seed": seed}
                row |= labelled(model, other, text, args.hook, args)
                rows.append(row)
                _say(f"{checkpoint}, {of}, seed {seed}, {kind}: {row['labels']} of {row['n_scored']} scored features")
                if seed == args.seeds[0] and kind != "shuffled" and args.survey:
                    surveys += _survey(model, other, text, row, args)
                del row["of"]
    return {"rows": rows, "surveys": surveys, "environment": environment()}


def variants(args: argparse.Namespace) -> list[tuple[str, int | None, int]]:
    """(architecture, width, k) of the dictionaries to train; k once where the architecture has none."""
    each = itertools.product(args.archs, args.d_sae, args.k)
    return [(a, width, k) for a, width, k in each if architecture(a).chooses_k or k == args.k[0]]


def _autoencoder(model: HookedModel, arch: str, d_sae: int | None, k: int, seed: int, args: argparse.Namespace) -> SAE:
    if args.sae is not None:
        return load_sae(args.sae)
    config = TrainConfig(
        hooks=(args.hook,), n_tokens=args.train_tokens, arch=arch, d_sae=d_sae, k=k, seed=seed, lr=args.lr
    )
    return train_sae(config, model=model, track=progress(args)).saes[args.hook]


def _survey(
    model: HookedModel, sae: SAE, text: TokenDataset, row: dict[str, Any], args: argparse.Namespace
) -> list[dict[str, Any]]:
    config = HeadSurveyConfig(null_tokens=args.tokens, n_dictionaries=args.dictionaries)
    found = head_survey(model, {args.hook: sae}, text, config, families={args.hook: row["of"]})
    return [{"checkpoint": row["checkpoint"], "dictionary": row["dictionary"], **head} for head in found.heads]


def title(args: argparse.Namespace) -> str:
    """What was measured."""
    sizes = f"{args.d_sae} features, k {args.k}" if args.d_sae != [None] else f"k {args.k}"
    what = args.sae or f"{', '.join(args.archs)}, {sizes}, {args.train_tokens:,} tokens of training"
    return (
        f"gpt2-mini {args.hook}: {what}; seeds {args.seeds}; scored on {args.tokens:,} tokens, {args.draws} null draws"
    )


def tables(found: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    yield "\n| checkpoint | dictionary | scored | induction | local | long-range | induction: excess, specific, labelled |"
    yield "|---|---|---|---|---|---|---|"
    for place in dict.fromkeys((_where(r), r["dictionary"]) for r in found["rows"]):
        mine = [r for r in found["rows"] if (_where(r), r["dictionary"]) == place]
        cells = [_spread([100 * r["labels"][f] / max(1, r["n_scored"]) for r in mine]) for f in FAMILIES]
        scored = " / ".join(str(r["n_scored"]) for r in mine)
        steps = " / ".join(f"{r['n_excess']}, {r['n_specific']}, {r['labels']['induction']}" for r in mine)
        yield f"| {place[0]} | {place[1]} | {scored} | {' | '.join(cells)} | {steps} |"
    yield "\n| induction feature | score | null | q | source entropy, nats | null's 5 % | fall | 95 % interval |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in found["rows"]:
        for f in r["induction"]:
            name = f"{_where(r)}, {r['dictionary']}, seed {r['seed']}: {f['feature']}"
            yield (
                f"| {name} | {f['induction']:.2f} | {f['induction_null']:.2f} | {f['induction_q']:.3f} | "
                f"{f['source_entropy']:.2f} | "
                f"{f['source_entropy_null']:.2f} | {f['fall']:.2f} | {f['fall_low']:.2f} to {f['fall_high']:.2f} |"
            )
    yield "\n| head | dictionary | groups | random dictionaries (95 %) | excess | verdict |\n|---|---|---|---|---|---|"
    for s in found["surveys"]:
        yield (
            f"| {s['checkpoint']} {s['layer']}.{s['head']} | {s['dictionary']} | {s['n_groups']} | {s['null_groups']:.1f} "
            f"({s['null_low']:.0f} to {s['null_high']:.0f}) | {s['excess']:.1f} [{s['excess_low']:.1f}, "
            f"{s['excess_high']:.1f}] | {s['verdict']} |"
        )


def _where(row: dict[str, Any]) -> str:
    """The checkpoint, and the dictionary's kind where there are several."""
    return ", ".join(filter(None, (row["checkpoint"], row["variant"])))


def _spread(percent: Sequence[float]) -> str:
    """Median over seeds with range, %."""
    if len(percent) == 1:
        return f"{percent[0]:.1f} %"
    return f"{statistics.median(percent):.1f} % ({min(percent):.1f} to {max(percent):.1f})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hook", default=HOOK, help="an attn.hook_z of gpt2-mini")
    parser.add_argument("--checkpoints", nargs="+", default=list(CHECKPOINTS), help="last, or step-00250 and so on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sae", type=Path, default=None, help="folder of an autoencoder, in place of training")
    parser.add_argument("--train-tokens", type=int, default=TrainConfig.n_tokens)
    parser.add_argument("--archs", nargs="+", default=["topk"], choices=list(ARCHITECTURES))
    parser.add_argument("--d-sae", type=int, nargs="+", default=[None], help="widths; default 8 × the hook's")
    parser.add_argument("--k", type=int, nargs="+", default=[TrainConfig.k], help="active features a token")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="trained ones and which controls"
    )
    parser.add_argument("--lr", type=float, default=None, help="learning rate; default that of the architecture")
    parser.add_argument("--tokens", type=int, default=8_192, help="held-out tokens that features are scored on")
    parser.add_argument("--draws", type=int, default=100, help="null directions of each profile")
    parser.add_argument("--dictionaries", type=int, default=50, help="random dictionaries of the survey")
    parser.add_argument("--no-survey", dest="survey", action="store_false", help="labels alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--quiet", dest="progress", action="store_false", help="no progress")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    for line in (title(args), *tables(found)):
        print(line)


if __name__ == "__main__":
    main()

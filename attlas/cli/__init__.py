"""The `attlas` command: one verb a module, loaded only when it is called.

A verb module has `Args`, a frozen dataclass (or a tyro union of such, for verbs with sub-verbs) whose docstring is the
help text and ends in an example; and `run(args, out) -> dict`, whose result `--json` prints. Nothing else is registered
anywhere but in `VERBS`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# verb -> one line of help; the module is attlas.cli.<verb>
VERBS = {
    "demo": "run the whole job on the embedded models, then open the atlas",
    "models": "list the models at hand; fetch the larger ones",
    "capture": "write activations of chosen hooks to disk",
    "train": "train sparse autoencoders on attention outputs",
    "eval": "evaluate a sparse autoencoder",
    "features": "interpret the features of a sparse autoencoder",
    "explain": "label features or heads by a language model, and score the labels",
    "heads": "read every head over a corpus: scores, account, sequences that show it",
    "entropy": "measure attention entropy per head",
    "redundancy": "score attention, MLP and block redundancy per layer",
    "prune": "drop modules, measure what it costs, export a smaller checkpoint",
    "vit": "rank ViT heads; how far they attend; what patterns they draw",
    "circuit": "patch, attribute and trace circuits through heads and features",
    "steer": "generate while features or heads are raised, set or taken out",
    "export": "write an autoencoder, its features or a run over heads for another program",
    "runs": "list, name, delete and restore the runs of a workspace",
    "notes": "list, write, export and import what people wrote about features and heads",
    "serve": "open a workspace in the browser",
    "bench": "measure speed and memory beside other libraries",
    "doctor": "check this installation and say what is missing",
}


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: attlas VERB [options]",
            "",
            "An atlas of attention: what the heads, layers and sparse features of a model do.",
            "",
            *lines,
            "",
            "attlas VERB --help shows a verb's options and an example. Every verb takes --json.",
            "Start with: attlas demo",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 when the result is complete, 1 when it lies elsewhere or `doctor` found something, 2 for bad
    input, 130 when interrupted, 141 when the reader of a pipe has gone, 143 when terminated.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # here, where a reader that has gone (`| head`) can still be met quietly
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 141


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from attlas import __version__

        print(f"attlas {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        from attlas.errors import nearest

        print(f"attlas: unknown verb '{verb}'{nearest(verb, VERBS)} (attlas --help lists them)", file=sys.stderr)
        return 2
    from attlas.cli.common import run_verb

    return run_verb(verb, importlib.import_module(f"attlas.cli.{verb}"), rest)

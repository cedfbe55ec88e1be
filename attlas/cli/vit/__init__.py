"""`attlas vit`: which heads of a vision model matter, how far they attend, what they draw, which patches they need."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import subcommand

from attlas.cli.common import Output, done, open_model, open_workspace, sub_verb_module
from attlas.cli.inputs import image_source, with_classes
from attlas.cli.vit.args import Heads, Patterns, Pruning, Tokens

Args = (
    Annotated[Heads, subcommand("heads")]
    | Annotated[Pruning, subcommand("pruning")]
    | Annotated[Tokens, subcommand("tokens")]
    | Annotated[Patterns, subcommand("patterns")]
)
SUB_VERBS = ("heads", "pruning", "tokens", "patterns")
DEFAULT_ARGV = ["heads"]
OLD_OPTIONS = {"pruning": {"--pruned-to": ("--ablation",)}, "patterns": {"--batch-size": ()}}


def run(args: Heads | Pruning | Tokens | Patterns, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    from attlas.data.images.dataset import load_images

    workspace = open_workspace(args)
    model = open_model(args, out)
    images = load_images(
        image_source(model, args.images), model.image_spec, n_images=args.n_images, seed=args.config.seed
    )
    model = with_classes(model, args, images)
    measure = sub_verb_module("vit", args).run
    saved, summary = measure(args, out, model, images, workspace)
    return done(saved, workspace, summary, out)

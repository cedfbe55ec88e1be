"""`attlas export`: a sparse autoencoder, or its feature dashboards, in another library's format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from attlas.cli.common import Output
from attlas.cli.inputs import find_sae
from attlas.cli.options import OutArgs
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.workspace import Run, Workspace

Format = Literal["saelens", "sparsify", "dictionary_learning", "original", "neuronpedia-json"]


@dataclass(frozen=True)
class Args(OutArgs):
    """Write a sparse autoencoder for SAELens, sparsify or dictionary_learning, or its features for Neuronpedia.

    For example:

        attlas export --sae sae-gpt2-mini-0a1b2c3d --format saelens --to exported
    """

    format: Format = "saelens"
    """Whose files; neuronpedia-json needs a features run of the SAE in the workspace (attlas features)."""
    sae: str | None = None
    """A run id of the workspace, a path, or saelens:RELEASE/ID; by default the newest SAE of the workspace."""
    to: Annotated[Path, tyro.conf.arg(aliases=["-o", "--folder", "--to-folder"])] = Path("exported")
    """Folder to write, new or empty."""


def as_today(argv: Sequence[str]) -> list[str]:
    """`--to` was the format once: before the name of one it still is (a folder of that name: --folder saelens)."""
    names = get_args(Format)
    words = list(argv)
    for at, (word, following) in enumerate(itertools.zip_longest(words, words[1:], fillvalue="")):
        option, _, value = word.partition("=")
        if option == "--to" and (value or following) in names:
            words[at] = word.replace("--to", "--format", 1)
    return words


def run(args: Args, out: Output) -> dict[str, Any]:
    from attlas.data.workspace import Workspace
    from attlas.saes.formats import FORMATS, load_sae

    workspace = Workspace(args.workspace)  # read only
    check_writable(args.to)
    source, parent = find_sae(workspace, args.sae)
    sae = load_sae(source)
    if args.to.is_file() or (args.to.is_dir() and any(args.to.iterdir())):
        raise ConfigError(f"'{args.to}' is not an empty folder; give another with --to")
    if args.format == "neuronpedia-json":
        files = _neuronpedia(workspace, parent, sae.cfg, args.to)
    else:
        FORMATS[args.format].save(sae, args.to)
        files = sorted(args.to.iterdir())
    out.say(f"wrote {len(files)} files to {args.to}: {', '.join(path.name for path in files[:4])}")
    return {"sae": source, "to": args.format, "folder": str(args.to), "files": [str(path) for path in files]}


def _neuronpedia(workspace: Workspace, parent: Run | None, cfg: Any, folder: Path) -> list[Path]:
    from attlas.saes.formats import neuronpedia

    found = [r for r in workspace.runs("features") if parent is not None and parent.id in r.parents]
    if not found:
        raise ConfigError("the workspace has no features run of this SAE; run attlas features first")
    names = [name for name in ("features", "examples", "logits", "histogram") if name in found[0].tables]
    return neuronpedia.save({name: workspace.read_table(found[0], name) for name in names}, cfg, folder)

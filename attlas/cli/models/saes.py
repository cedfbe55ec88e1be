"""`attlas models saes`: the published releases, and what is shown of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output
from attlas.errors import ConfigError, nearest
from attlas.saes.formats.published import RELEASES

if TYPE_CHECKING:
    from attlas.cli.models import Saes


def run(args: Saes, out: Output) -> dict[str, Any]:
    """List.

    Raises:
        ConfigError: nothing is of that model and hook.
    """
    chosen = [r for r in RELEASES if args.model.lower() in r.model.lower() and args.hook in r.hook]
    if not chosen:
        names = sorted({r.model for r in RELEASES})
        raise ConfigError(
            f"no release is of a model with '{args.model}' and a hook with '{args.hook}' in its name"
            + (nearest(args.model, names) or f"; models: {', '.join(names[:4])} …")
        )
    out.table(
        "published sparse autoencoders (--sae RELEASE/PATH, RELEASE/LAYER, or a folder of any of these layouts)",
        ["release", "model", "hook", "layout", "path of one", "here"],
        [
            (r.name, r.model, r.hook.replace("blocks.{layer}.", ""), r.layout, r.path, "yes" if r.present else "no")
            for r in chosen
        ],
    )
    out.say(f"a copy of a repository is looked for in {chosen[0].local.parent}/RELEASE, else the hub is asked")
    return {
        "releases": [
            {
                "name": r.name,
                "repository": r.repository,
                "model": r.model,
                "hook": r.hook,
                "layout": r.layout,
                "path": r.path,
                "present": r.present,
                "local": str(r.local),
            }
            for r in chosen
        ]
    }

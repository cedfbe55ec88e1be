"""Options of the sub-verbs of `attlas export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attlas.cli.options import OutArgs

Format = Literal["saelens", "sparsify", "dictionary_learning", "original", "neuronpedia-json"]


@dataclass(frozen=True)
class Sae(OutArgs):
    """Write a sparse autoencoder for SAELens, sparsify or dictionary_learning, or its features for Neuronpedia.

    For example:

        attlas export --sae sae-gpt2-mini-0a1b2c3d --format saelens --to exported
    """

    format: Format = "saelens"
    """Whose files; neuronpedia-json needs a features run of the SAE in the workspace (attlas features)."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH (attlas models saes), or saelens:RELEASE/ID;
    by default the newest SAE of the workspace."""
    to: Annotated[Path, tyro.conf.arg(aliases=["-o", "--folder", "--to-folder"])] = Path("exported")
    """Folder to write, new or empty."""


@dataclass(frozen=True)
class Headvis(OutArgs):
    """Write a run of attlas heads as HeadVis's data tree, which its interface and Neuronpedia show.

    For example:

        attlas export headvis --out headvis
    """

    run: str | None = None
    """A run of attlas heads in the workspace, measured or imported; by default the newest."""
    to: Annotated[Path, tyro.conf.arg(aliases=["-o", "--out"])] = Path("headvis")
    """Folder to write, new or empty."""


@dataclass(frozen=True)
class Html(OutArgs):
    """Write heads, features or any page as one HTML file that needs no server and no network, and stays interactive.

    For example:

        attlas export html heads --out heads.html
        attlas export html features --n-features 500 --out features.html
        attlas export html "/feature?id=746" --out feature-746.html
        attlas export html "/circuit?model=gpt2-mini&view=graph" --out circuit.html
    """

    what: tyro.conf.Positional[str] = "heads"
    """heads (finder, accounts, sequences), features (table, examples), or a page's address as in the browser."""
    run: str | None = None
    """A run of attlas heads (measured or imported) or attlas features in the workspace; by default the newest."""
    feature: tuple[int, ...] = ()
    """Features by number; by default those with the largest activation."""
    n_features: int = 300
    """How many of those."""
    figures: bool = True
    """Keep figures interactive, with 4.8 MB of Plotly in the file; without, their tables stay."""
    dark: bool = False
    """Dark colours, of features and pages (heads follow the system)."""
    head: tuple[str, ...] = ()
    """Heads, such as 3.0 2.1; by default all."""
    n_sequences: int = 12
    """Sequences of each list of a head (by weight, output, unexplained mass), the first ones; fewer make a smaller file."""
    to: Annotated[Path, tyro.conf.arg(aliases=["-o", "--out"])] = Path("attlas.html")
    """File to write."""

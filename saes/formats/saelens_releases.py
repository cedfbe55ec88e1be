"""`saelens:RELEASE/ID`: SAELens's list of published SAEs, read through SAELens itself (needs network)."""

from __future__ import annotations

import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

from attlas.errors import MissingExtraError, SAEFormatError, nearest
from attlas.saes.base import SAE
from attlas.saes.formats import saelens

EXAMPLE = "saelens:gpt2-small-hook-z-kk/blocks.5.hook_z"


def load_release(name: str) -> SAE:
    """Fetch an SAE that SAELens's directory lists.

    Args:
        name: "saelens:RELEASE/ID", such as "saelens:gpt2-small-hook-z-kk/blocks.5.hook_z".

    Raises:
        SAEFormatError: the release or the id is unknown, or the hub cannot be reached.
    """
    release, _, sae_id = name.removeprefix("saelens:").partition("/")
    if not release or not sae_id:
        raise SAEFormatError(f"'{name}' names no SAE; give saelens:RELEASE/ID, such as {EXAMPLE}")
    listing = _listing()
    if release not in listing:
        raise SAEFormatError(f"SAELens lists no release '{release}'{nearest(release, listing)}")
    ids = listing[release]
    if sae_id not in ids:
        raise SAEFormatError(f"release '{release}' has no SAE '{sae_id}'{nearest(sae_id, ids)}; it has {len(ids)}")
    from sae_lens import SAE as TheirSAE

    try:
        theirs = TheirSAE.from_pretrained(release, sae_id)
    except Exception as error:  # the hub's client raises many kinds, and says little in most
        reason = str(error).strip().splitlines()
        raise SAEFormatError(
            f"'{name}' could not be fetched ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            "it needs the network once, or a folder that already holds it"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_model(folder)
        return saelens.load(Path(folder))


def _listing() -> dict[str, list[str]]:
    """Release → ids of SAELens's directory, read as lines: importing SAELens takes a minute, parsing its YAML seconds."""
    found = find_spec("sae_lens")
    if found is None or found.origin is None:
        raise MissingExtraError("saelens: names need SAELens; pip install sae-lens, or give an SAE's folder")
    return read_listing(Path(found.origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8"))


def read_listing(text: str) -> dict[str, list[str]]:
    """Release → ids in the text of SAELens's directory."""
    listing: dict[str, list[str]] = {}
    for release, sae_id in re.findall(r"^([^\s#-][^:\n]*):|^[ -]+id: *([^\n]+)", text, re.MULTILINE):
        if release:
            ids = listing.setdefault(release.strip("'\""), [])
        else:
            ids.append(sae_id.strip(" '\""))
    return {release: list(dict.fromkeys(ids)) for release, ids in listing.items()}  # some are listed twice

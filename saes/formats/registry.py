"""`saelens:RELEASE/ID`: the ecosystem's registry of published SAEs, read through SAELens itself (needs network)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attlas.errors import SAEFormatError, nearest
from attlas.saes.base import SAE
from attlas.saes.formats import saelens


def load_release(name: str) -> SAE:
    """Fetch an SAE that SAELens's directory lists.

    Args:
        name: "saelens:RELEASE/ID", such as "saelens:gpt2-small-hook-z-kk/blocks.5.hook_z".

    Raises:
        SAEFormatError: the release or the id is unknown, or the hub cannot be reached.
    """
    from sae_lens import SAE as TheirSAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = name.removeprefix("saelens:").partition("/")
    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise SAEFormatError(f"SAELens lists no release '{release}'{nearest(release, directory)}")
    ids = directory[release].saes_map
    if sae_id not in ids:
        raise SAEFormatError(f"release '{release}' has no SAE '{sae_id}'{nearest(sae_id, ids)}; it has {len(ids)}")
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

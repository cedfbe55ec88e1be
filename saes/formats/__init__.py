"""Files of sparse autoencoders, ours and other libraries': one module a format, each with detect, load and save."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from attlas.data.workspace import in_workspace
from attlas.errors import SAEFormatError, nearest
from attlas.saes.base import SAE
from attlas.saes.formats import dictionary_learning, gemma_scope, openmoss, original, published, saelens, sparsify

FORMATS: dict[str, ModuleType] = {
    saelens.NAME: saelens,
    sparsify.NAME: sparsify,
    dictionary_learning.NAME: dictionary_learning,
    gemma_scope.NAME: gemma_scope,
    openmoss.NAME: openmoss,
    original.NAME: original,
}


def load_sae(path_or_release: str | Path, device: str = "cpu") -> SAE:
    """Open a sparse autoencoder of any format that Attlas reads.

    Args:
        path_or_release: a folder or file of one of the formats in `FORMATS` (found out by its files), a run's folder
            in a workspace (`workspace/runs/<id>`), "RELEASE/PATH" or "RELEASE/LAYER" of a published release
            (`attlas models saes`), or "saelens:RELEASE/ID", which SAELens fetches from the hub.
        device: where the weights go.

    Raises:
        SAEFormatError: nothing there is readable as an SAE, or the release cannot be fetched.
        WorkspaceError: it is a workspace's, and not the bytes that were written.

    Example:
        >>> from attlas import load_sae
        >>> written = sae.save(folder / "sae")
        >>> load_sae(written).W_dec.shape  # [features, d_in]
        torch.Size([32, 192])
    """
    if str(path_or_release).startswith("saelens:"):
        from attlas.saes.formats.saelens_releases import load_release

        return load_release(str(path_or_release)).to(device)
    path = in_workspace(Path(path_or_release).expanduser())
    if not path.exists():
        found = published.find(str(path_or_release))
        if found is None:
            near = nearest(str(path_or_release).split("/")[0], [release.name for release in published.RELEASES])
            raise SAEFormatError(
                f"'{path}' does not exist; give an SAE's folder, its .pt file, RELEASE/PATH of attlas models saes, or "
                f"saelens:RELEASE/ID{near}"
            )
        path = found
    if (path / "sae").is_dir():  # a run's folder
        path = path / "sae"
    for module in FORMATS.values():
        if module.detect(path):
            return module.load(path).to(device)
    held = ", ".join(sorted(p.name for p in path.iterdir())[:6]) if path.is_dir() else path.name
    inside = (
        sorted(p.name for p in path.iterdir() if any(m.detect(p) for m in FORMATS.values())) if path.is_dir() else []
    )
    hint = f"; it holds {len(inside)} SAEs: give '{path / inside[0]}'" if inside else ""
    raise SAEFormatError(
        f"'{path}' is no SAE of a known format (it holds {held or 'nothing'}); known: {', '.join(FORMATS)}{hint}"
    )

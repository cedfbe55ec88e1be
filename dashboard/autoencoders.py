"""Autoencoders of the workspace for work on models."""

from __future__ import annotations

from attlas.dashboard.reader import WorkspaceReader
from attlas.saes import load_sae
from attlas.saes.base import SAE


def autoencoder(reader: WorkspaceReader, run_id: str) -> SAE:
    """That of a run of kind `sae`, loaded once. To be called by work."""
    path = str(reader.workspace.folder(next(run for run in reader.runs("sae") if run.id == run_id)))
    return reader.jobs.kept(("sae", path), lambda: load_sae(path))

"""A page's data for one URL: what the URL names is there, and what was cut is said."""

from __future__ import annotations

import re
import time

from attlas.dashboard.cuts import cuts
from attlas.dashboard.page import Data, Page, Params
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.errors import WorkspaceError

_NAMES_A_RUN = re.compile(r"run|matching|pruned|sae\d*")


class MissingRunError(WorkspaceError):
    """The URL names a run that is not in the workspace.

    Attributes:
        parameters: which parameters of the URL name it.
    """

    def __init__(self, run: str, parameters: tuple[str, ...]) -> None:
        super().__init__(
            f"there is no run '{run[:80]}' in this workspace: it was deleted, or the link is from another workspace"
        )
        self.parameters = parameters


def answer(page: Page, reader: WorkspaceReader, params: Params) -> Data:
    """`page.data` as plain JSON values; under "cut" each table of which only a part was read.

    Raises:
        MissingRunError: a parameter names a run that is not here.
        WorkspaceError: the manifest or a table cannot be read.
    """
    named = {
        name: value for name, value in params.items() if value not in ("", "none") and _NAMES_A_RUN.fullmatch(name)
    }
    if named:
        here = {run.id for run in reader.runs()}
        gone = tuple(name for name, value in named.items() if value not in here)
        if gone:
            raise MissingRunError(named[gone[0]], gone)
    with cuts() as cut:
        found: Data = clean(page.data(reader, params))
    if cut:
        found["cut"] = [dict(row) for row in cut]
    return found


def settled(page: Page, reader: WorkspaceReader, params: Params, data: Data, until: float) -> Data:
    """`answer` once the work that it waits for has ended; `data` is the answer so far, `until` a time of time.monotonic()."""
    while data.get("job") and data.get("live") and time.monotonic() < until:
        time.sleep(0.05)
        data = answer(page, reader, params)
    return data

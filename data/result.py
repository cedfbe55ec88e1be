"""What an analysis found: tables, a figure, headline numbers, and one way to keep them in a workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from attlas.data.runs.record import Ref, Run, jsonable
from attlas.data.workspace import Workspace
from attlas.errors import WorkspaceError


@runtime_checkable
class HasRef(Protocol):
    """A model or a data set, which says by what name and hash it is known."""

    @property
    def ref(self) -> Ref: ...


class Result:
    """Base of every result. A subclass names its `kind` and fills `tables`, `summary` and `plot`; saving is the same for all.

    What is recorded as settings is `config`, with its seed; what lies beside the tables are `_arrays` and `_files`.
    """

    kind: ClassVar[str]
    config: Any

    def tables(self) -> dict[str, pa.Table]:
        """Every table, under the name of its schema."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Headline numbers: what the manifest keeps, and `--json` prints."""
        raise NotImplementedError

    def plot(self) -> Any:
        """The figure to look at first, a plotly Figure."""
        raise NotImplementedError

    # -- what a few results have besides --------------------------------------------------------------------------------

    def _arrays(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Files of arrays: name of the file -> name -> array."""
        return {}

    def _files(self) -> Mapping[str, Callable[[Path], Any]]:
        """Files and folders of other formats: path in the run's folder -> what fills it."""
        return {}

    def _recorded_config(self) -> Any:
        """What the manifest records as the run's config."""
        return self.config

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        """The model and the data it was measured on, where the result itself holds them."""
        return None, None

    # -- saving -----------------------------------------------------------------------------------------------------------

    def save(
        self,
        workspace: Workspace | str | Path,
        model: Any = None,
        data: HasRef | Ref | None = None,
        parents: Sequence[str] = (),
    ) -> Run:
        """Write one run: tables, arrays, files, settings and summary.

        Args:
            workspace: an open one, or its folder.
            model: what was measured (whatever the analysis took as a model), or its reference. Only where the result
                does not know it.
            data: the text or images it was measured on, likewise.
            parents: ids of the runs it was made from, such as the autoencoder's.

        Raises:
            WorkspaceError: neither the result nor the caller names the model.
            NonFiniteError: a table holds NaN or infinity alone.
        """
        known_model, known_data = self._origin()
        model_ref = reference(model) or known_model
        if model_ref is None:
            raise WorkspaceError(f"{type(self).__name__}.save needs the model: save(workspace, model, data)")
        begun = (workspace if isinstance(workspace, Workspace) else Workspace(workspace)).begin(
            self.kind,
            model=model_ref,
            data=reference(data) or known_data,
            config=_with(self._recorded_config(), getattr(model, "recorded", None)),
            seed=self._seed,
            parents=tuple(parents),
        )
        with begun as run:
            for name, table in self.tables().items():
                run.table(name, table)
            for name, arrays in self._arrays().items():
                run.arrays(name, arrays)
            for name, fill in self._files().items():
                run.write(name, fill)
            run.summary = self.summary()
        return run.record

    @property
    def _seed(self) -> int | None:
        """The config's seed; None where nothing is random."""
        return getattr(self.config, "seed", None)


def _with(config: Any, recorded: Mapping[str, Any] | None) -> Any:
    """Settings with what is recorded of the model beside them."""
    return {**jsonable(config or {}), **recorded} if recorded else config


@singledispatch
def reference(of: Any) -> Ref | None:
    """What a run records of a model or a data set; `attlas.interp` registers modules and names of models.

    Raises:
        WorkspaceError: it is neither.
    """
    if of is None or isinstance(of, Ref):
        return of
    if not isinstance(of, HasRef):
        raise WorkspaceError(f"{type(of).__name__} is neither a model nor a data set; give what was measured")
    return of.ref

"""Where a long pass over the data stood, in one safetensors file, so that it goes on exactly from there."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from attlas.analyses.heads.measure import HeadSums
from attlas.data.files import atomic_path
from attlas.errors import ConfigError, StorageError

EVERY_SECONDS = 20.0


class PassState:
    """The file of one pass.

    Args:
        path: of the file; None keeps nothing.
        key: what the pass depends on (model, data, settings); a file of another pass is refused.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key, self._last = path, key, time.monotonic()

    def load(self) -> HeadSums | None:
        """What the file knows, or None without one.

        Raises:
            ConfigError: it is of another pass, or damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "np") as file:
                about = json.loads(file.metadata()["state"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            part = {kind: _of(arrays, kind) for kind in ("sums", "activation")}
            found = HeadSums(
                part["sums"], arrays["n_queries"], arrays["n_repeats"], part["activation"], arrays["max_logit"],
                tuple(about["rules"]),
            )  # fmt: skip
        except Exception as error:
            raise ConfigError(
                f"'{self.path}' is no state of a pass over heads ({error}); delete it or give another"
            ) from None
        if about["key"] != self.key:
            raise ConfigError(f"'{self.path}' is the state of another pass ({about['key']}); delete it or give another")
        return found

    def keep(self, known: Callable[[], HeadSums]) -> None:
        """Write the state, atomically, when the last time is long enough ago; a full disk is a warning."""
        if self.path is None or time.monotonic() - self._last < EVERY_SECONDS:
            return
        sums = known()
        arrays = {"n_queries": sums.n_queries, "n_repeats": sums.n_repeats, "max_logit": sums.max_logit}
        arrays |= {f"sums/{name}": values for name, values in sums.sums.items()}
        arrays |= {f"activation/{name}": values for name, values in sums.activation.items()}
        try:
            with atomic_path(self.path) as temporary:
                save_file(arrays, temporary, metadata={"state": json.dumps({"key": self.key, "rules": sums.rules})})
        except StorageError as error:
            warnings.warn(f"no state of the pass over heads: {error}; the pass goes on", stacklevel=2)
        self._last = time.monotonic()

    def delete(self) -> None:
        """The pass is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _of(arrays: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith(f"{kind}/")}

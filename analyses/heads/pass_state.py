"""The state of a pass over heads: what every sequence so far has shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from attlas.analyses.common.pass_state import load_state, save_state
from attlas.analyses.heads.measure import HeadSums
from attlas.errors import ConfigError

EVERY_SECONDS = 20.0
PASS = "a pass over heads"


class PassState:
    """The file of one pass.

    Args:
        path: of the file; None keeps nothing.
        key: what the pass depends on (model, data, settings); a file of another pass is refused.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key, self._last = path, key, time.monotonic()

    def load(self) -> HeadSums | None:
        """What the file holds, or None without one.

        Raises:
            ConfigError: it is of another pass, or damaged.
        """
        state = None if self.path is None else load_state(self.path, self.key, PASS)
        if state is None:
            return None
        arrays = {name: tensor.numpy() for name, tensor in state[0].items()}
        try:
            known = [arrays[name] for name in ("n_queries", "n_repeats", "max_logit")]
            rules = tuple(state[1]["rules"])
        except KeyError as error:
            raise ConfigError(f"'{self.path}' is no state of {PASS} (no {error}); delete it or give another") from None
        n_queries, n_repeats, max_logit = known
        return HeadSums(_of(arrays, "sums"), n_queries, n_repeats, _of(arrays, "activation"), max_logit, rules)

    def keep(self, known: Callable[[], HeadSums]) -> None:
        """Write the state, atomically, when the last time is long enough ago; a full disk is a warning."""
        if self.path is None or time.monotonic() - self._last < EVERY_SECONDS:
            return
        sums = known()
        arrays = {"n_queries": sums.n_queries, "n_repeats": sums.n_repeats, "max_logit": sums.max_logit}
        arrays |= {f"sums/{name}": values for name, values in sums.sums.items()}
        arrays |= {f"activation/{name}": values for name, values in sums.activation.items()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        save_state(self.path, self.key, tensors, {"rules": sums.rules}, f"after sequence {len(sums.n_queries)}")
        self._last = time.monotonic()

    def delete(self) -> None:
        """The pass is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _of(arrays: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith(f"{kind}/")}

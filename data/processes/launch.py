"""What torchrun told this process of its place; read without torch."""

from __future__ import annotations

import os

from attlas.errors import ConfigError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """(rank, size) of this process; (0, 1) without torchrun.

    Raises:
        ConfigError: its variables are half there.

    Example:
        >>> from attlas.data.processes.launch import launched
        >>> launched()
        (0, 1)
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 0, 1
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing or not size.isdigit() or not os.environ["RANK"].isdigit():
        raise ConfigError(
            f"WORLD_SIZE={size} without a proper {missing[0] if missing else 'RANK'}; start with torchrun --nproc-per-node P"
        )
    return int(os.environ["RANK"]), int(size)

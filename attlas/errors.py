"""Every error Attlas raises on purpose.

The message is one line that says what was wrong, with what value, and what to do. The command line prints it
and exits with status 2. This module imports nothing, so that every room may import it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttlasError(Exception):
    """Base of all errors a user can cause and can mend."""


class ConfigError(AttlasError, ValueError):
    """An argument or a configuration value is out of range or contradicts another."""


class ModelNotFoundError(AttlasError):
    """No embedded model, folder or reachable hub repository has this name."""


class UnsupportedModelError(AttlasError):
    """The model's architecture, or a feature of it, has no adapter."""


class CheckpointError(AttlasError):
    """A weights file is damaged, incomplete, or does not fit the model."""


class HookNameError(AttlasError, KeyError):
    """A hook name or glob matches nothing in this model."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class LayerRangeError(AttlasError, IndexError):
    """A layer or head index is outside the model."""


class ContextLengthError(AttlasError, ValueError):
    """A sequence is longer than the model's context window."""


class NonFiniteError(AttlasError, ArithmeticError):
    """NaN or infinity in activations, gradients or a loss."""


class TextDataError(AttlasError, ValueError):
    """A text source is missing, empty, too short, or not UTF-8."""


class ImageDataError(AttlasError, ValueError):
    """An image source is missing, empty, corrupt, or of a shape the model does not take."""


class WorkspaceError(AttlasError):
    """A workspace folder cannot be read or written, or is of a newer schema."""


class StorageError(WorkspaceError):
    """A place cannot be written: no space, read-only, no permission."""


class SAEFormatError(AttlasError, ValueError):
    """A sparse autoencoder's files lack keys, hold unknown ones, or are of a refused format."""


class KernelError(AttlasError, ValueError):
    """Arguments of a kernel do not fit together (shape, dtype, device, k)."""


class PromptError(AttlasError, ValueError):
    """Prompts do not line up, or an answer is not one token."""


class TaskError(AttlasError, ValueError):
    """A model cannot do a task, or its tokenizer lacks the words for it."""


class ConservationError(AttlasError, ArithmeticError):
    """The parts of an attribution do not add up to the whole."""


class ProcessError(AttlasError, RuntimeError):
    """One of several processes that work together ended, or did not come."""


class EndpointError(AttlasError, RuntimeError):
    """A language model behind an address refused a request, or gave no answer that can be read."""


class MissingExtraError(AttlasError, ImportError):
    """An optional dependency is needed and not installed."""


def require_counts(config: object, *names: str) -> None:
    """Raise ConfigError for the first of these fields of a configuration that is below 1; says its value."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} {getattr(config, name)} must be 1 or more")


def require_shares(config: object, *names: str) -> None:
    """Raise ConfigError for the first of these fields of a configuration that is not between 0 and 1, both left out."""
    for name in names:
        if not 0 < getattr(config, name) < 1:
            raise ConfigError(f"{name} {getattr(config, name)} must lie between 0 and 1")


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """Return `", did you mean 'a', 'b'?"`, or an empty string when nothing is near."""
    found = difflib.get_close_matches(name, list(candidates), n=n, cutoff=0.4)
    return f"; did you mean {', '.join(repr(f) for f in found)}?" if found else ""

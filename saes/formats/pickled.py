"""Reading `.pt` files without running what they hold: `torch.load(weights_only=True)` or a refusal."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from attlas.errors import SAEFormatError


def read_state(path: Path) -> dict[str, Tensor]:
    """A dictionary of tensors.

    Raises:
        SAEFormatError: the file is missing, damaged, needs pickle to run code, or is not a dictionary of tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SAEFormatError(f"'{path}' does not exist; an SAE folder needs it") from None
    except pickle.UnpicklingError:
        raise SAEFormatError(
            f"'{path}' holds pickled Python objects, which can run any code when opened, so it is refused; where you "
            f"trust it, convert it once: torch.save(torch.load('{path.name}', weights_only=False).state_dict(), "
            f"'{path.stem}-weights.pt') and rename it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SAEFormatError(f"'{path}' is damaged ({str(error).splitlines()[0]}); copy or train it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SAEFormatError(f"'{path}' is not a dictionary of tensors; save the SAE's state_dict()")
    return state


def take(
    state: dict[str, Tensor], names: dict[str, str], source: Path, also: Collection[str] = ()
) -> dict[str, Tensor]:
    """Pick tensors by their foreign names; `names` maps ours to theirs, `also` may be there and is not taken.

    Raises:
        SAEFormatError: one is missing, or there is one more, which the function must depend on.
    """
    missing = sorted(theirs for theirs in names.values() if theirs not in state)
    if missing:
        raise SAEFormatError(
            f"'{source}' lacks {', '.join(missing)} (it has {', '.join(sorted(state))}); it is incomplete"
        )
    surplus = sorted(state.keys() - set(names.values()) - set(also))
    if surplus:
        raise SAEFormatError(
            f"'{source}' holds {', '.join(surplus)} besides the weights of an SAE of its class; Attlas does not know what "
            "they do (a skip connection?) and refuses it"
        )
    return {ours: state[theirs] for ours, theirs in names.items()}


def transposed(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The same with some matrices transposed (nn.Linear keeps [out, in])."""
    return {name: tensor.T.contiguous() if name in names else tensor for name, tensor in state.items()}

"""The models of one training's checkpoints, one in memory at a time, all on the first one's data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attlas.data.checkpoints import Checkpoint
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track
from attlas.data.text import TokenDataset
from attlas.errors import CheckpointError
from attlas.interp import HookedModel, load_model
from attlas.interp.config import ModelConfig

Data = TokenDataset | ImageDataset
Shape = tuple[str, int, int]


def each_model(
    checkpoints: tuple[Checkpoint, ...],
    data: Callable[[HookedModel], Data],
    shape: Callable[[ModelConfig], Shape],
    told: Callable[[Shape], str],
    track: Track,
    device: str,
) -> Iterator[tuple[HookedModel, Data]]:
    """Every checkpoint, opened, with the data that `data` makes for the first.

    Args:
        shape: what must be alike in all of them; `told` says it of one that differs.

    Raises:
        CheckpointError: a checkpoint's shape differs from the first one's.
    """
    first: Shape | None = None
    dataset: Data | None = None
    for checkpoint in track(checkpoints, "checkpoints"):
        model = load_model(checkpoint.folder, device=device)
        here = shape(model.cfg)
        first = first or here
        if here != first:
            raise CheckpointError(f"'{checkpoint.folder}' is {told(here)}; the first is {first}")
        dataset = data(model) if dataset is None else dataset
        yield model, dataset

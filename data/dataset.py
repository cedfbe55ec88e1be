"""What a model is run on, in one shape: text, images, and what stored activations were captured on.

Analyses that read every position alike take `batches`; those that know of padding take `minibatches`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from attlas.data.runs.record import Ref
from attlas.data.splits import stratified_order
from attlas.errors import AttlasError, ConfigError

if TYPE_CHECKING:
    from typing import Self

NO_TARGET = -100
"""In targets: nothing to predict, as in torch's cross-entropy and Hugging Face's labels."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set, with all that is known of them.

    Attributes:
        inputs: tokens int64 [B, T], or pixels float32 [B, C, H, W].
        mask: bool [B, T], True where a position counts; None where all do.
        targets: what is right: of text the tokens themselves, NO_TARGET in padding, int64 [B, T] (position t is predicted
            at t − 1); of images their labels, int64 [B]; None without labels.
        rows: which rows of the data set, int64 [B].
    """

    inputs: Tensor
    mask: Tensor | None
    targets: Tensor | None
    rows: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


class Dataset:
    """Base of every data set: rows of one shape, known by a name and a hash of their content.

    A subclass holds the fields below and cuts a part of itself (`_part`); drawing, splitting and batching are the same for all.

    Attributes:
        tensor: tokens int64 [n, T], or pixels float32 [n, C, H, W].
        mask: bool [n, T], True where a token is text and not padding; None where all is.
        labels: int64 [n], or None.
        class_names: of the labels, or None.
        name: where the rows came from.
        hash: 16 hex digits over the content (see `content_hash`).
    """

    _THINGS: ClassVar[str] = "rows"
    _ERROR: ClassVar[type[AttlasError]] = ConfigError

    if TYPE_CHECKING:  # fields or properties of the subclasses; here they would be a dataclass's defaults

        @property
        def tensor(self) -> Tensor: ...
        @property
        def mask(self) -> Tensor | None: ...
        @property
        def labels(self) -> Tensor | None: ...
        @property
        def class_names(self) -> tuple[str, ...] | None: ...
        @property
        def name(self) -> str: ...
        @property
        def hash(self) -> str: ...

    def _part(self, rows: Tensor) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def ref(self) -> Ref:
        """Name and hash, as a run records them."""
        return Ref(self.name, self.hash)

    @property
    def targets(self) -> Tensor | None:
        """What is right for every row, as in `Batch`."""
        if self.tensor.ndim != 2:
            return self.labels
        return self.tensor if self.mask is None else self.tensor.masked_fill(~self.mask, NO_TARGET)

    # -- parts ----------------------------------------------------------------------------------------------------------

    def select(self, rows: Iterable[int] | Tensor | np.ndarray) -> Self:
        """The rows of these numbers, in that order."""
        chosen = rows if isinstance(rows, (Tensor, np.ndarray)) else list(rows)
        return self._part(torch.as_tensor(chosen, dtype=torch.long))

    def take(self, n: int) -> Self:
        """The first rows; loaders set them in an order of which any piece is a (stratified) sample."""
        return self if n >= len(self) else self.select(range(n))

    def split(self, share: float, seed: int = 0) -> tuple[Self, Self]:
        """Two disjoint parts, the first with this share of the rows (and of every class), drawn by the seed.

        Raises:
            TextDataError, ImageDataError: a part would be empty.
        """
        cut = round(len(self) * share)
        if not 0 < cut < len(self):
            raise self._ERROR(f"{len(self)} {self._THINGS} of '{self.name}' cannot be split {share:.0%}; give more")
        order = stratified_order(len(self), None if self.labels is None else self.labels.numpy(), seed)
        return self.select(order[:cut]), self.select(order[cut:])

    # -- batches --------------------------------------------------------------------------------------------------------

    def batches(self, batch_size: int) -> Sequence[Tensor]:
        """Tensors of at most `batch_size` rows each, in order, for what reads every position alike.

        Raises:
            TextDataError: the rows are padded.
        """
        if self.mask is not None:
            raise self._ERROR(
                f"'{self.name}' is padded, and padding would be read as text here; load it packed (without --pad)"
            )
        return self.tensor.split(batch_size)

    def minibatches(self, batch_size: int, targets: Tensor | None = None) -> Sequence[Batch]:
        """Batches of at most `batch_size` rows each, in order, with their mask and targets.

        Args:
            batch_size: rows.
            targets: in place of the data set's own, such as labels in a classifier's numbering.
        """
        right = self.targets if targets is None else targets
        return [
            Batch(
                self.tensor[rows],
                None if self.mask is None else self.mask[rows],
                None if right is None else right[rows],
                torch.arange(rows.start, rows.stop),
            )
            for rows in _slices(len(self), batch_size)
        ]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last dimension where the mask holds (everywhere without one); NaN where it never does.

    Args:
        values: [B, ..., T].
        mask: bool [B, T], or None.
    """
    if mask is None:
        return values.mean(-1)
    keep = mask.view(len(mask), *[1] * (values.ndim - 2), -1).to(values.device)
    return values.masked_fill(~keep, 0).sum(-1) / keep.sum(-1)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def content_hash(first: Tensor | np.ndarray, *more: Tensor | np.ndarray | Sequence[str] | None) -> str:
    """Sixteen hex digits over shape and bytes of an array, and over further arrays or names where there are any.

    Example:
        >>> from attlas.data.dataset import content_hash
        >>> tokens = np.arange(6).reshape(2, 3)
        >>> content_hash(tokens) == content_hash(tokens, None) != content_hash(tokens.reshape(3, 2))
        True
    """
    array = np.ascontiguousarray(first)
    digest = hashlib.sha256(str(array.shape).encode() + array.tobytes())
    for part in more:
        if isinstance(part, (Tensor, np.ndarray)):
            digest.update(np.ascontiguousarray(part).tobytes())
        elif part is not None:
            digest.update("\0".join(part).encode())
    return digest.hexdigest()[:16]

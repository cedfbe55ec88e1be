"""What calibrates and what measures: disjoint, and both of all classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from attlas.cli.prune.args import Args
from attlas.cli.prune.work import _data
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def test_halves_of_images_share_all_classes_and_no_image(vit_mini: HookedModel) -> None:
    first, second = _data(vit_mini, Args(n_images=288))
    assert isinstance(first, ImageDataset)
    assert isinstance(second, ImageDataset)
    assert len(first) == len(second) == 144
    classes = [set(part.labels.tolist()) for part in (first, second)]  # type: ignore[union-attr]
    assert classes[0] == classes[1] == set(range(36))
    assert not {t.tobytes() for t in first.thumbnails} & {t.tobytes() for t in second.thumbnails}
    with pytest.raises(ConfigError, match="cannot both calibrate"):
        _data(vit_mini, Args(n_images=1))


def test_one_text_for_both_is_divided(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(f"Number {i} is {i * i}, and the next is {i + 1}." for i in range(400)))
    args = Args(text=str(path), calibration=str(path), seq_len=32, n_tokens=1024, calibration_tokens=512)
    first, second = _data(gpt2_mini, args)
    assert isinstance(first, TokenDataset)
    assert isinstance(second, TokenDataset)
    assert (len(first), len(second)) == (16, 32)
    assert not set(map(tuple, first.tokens.tolist())) & set(map(tuple, second.tokens.tolist()))

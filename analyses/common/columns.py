"""Columns that tables of several analyses share."""

from __future__ import annotations

import pyarrow as pa

from attlas.data.schema import column

LAYER = column("layer", pa.int16(), "", "layer index, from 0")


HEAD = column("head", pa.int16(), "", "head index, from 0")


N_IMAGES = column("n_images", pa.int32(), "images", "images measured")


MODULES = ("attn", "mlp", "block")


def interval(unit: str) -> tuple[pa.Field, pa.Field]:
    """Columns low and high."""
    return (
        column("low", pa.float64(), unit, "95 % bootstrap interval over images, lower end"),
        column("high", pa.float64(), unit, "95 % bootstrap interval over images, upper end"),
    )

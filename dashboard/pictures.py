"""Pictures that figures and pages point at, made on demand: one query's attention map beside its image."""

from __future__ import annotations

import numpy as np

from attlas.dashboard.components.maps import overlaid, png
from attlas.dashboard.reader import WorkspaceReader

SIDE = 128


def pattern_picture(reader: WorkspaceReader, run_id: str, index: int) -> bytes | None:
    """PNG of a map of a vit_patterns run: its image, and the map over it with the query outlined; None without."""
    from PIL import Image, ImageDraw

    run = next((r for r in reader.runs("vit_patterns") if r.id == run_id), None)
    rows = reader.rows(run, "patterns", map=index)
    arrays = reader.arrays(run, "patterns")
    if not rows or "maps" not in arrays or not 0 <= index < len(arrays["maps"]):
        return None
    row, values = rows[0], arrays["maps"][index].astype(np.float32)
    image = arrays["thumbnails"][row["thumbnail"]]
    over = Image.fromarray(overlaid(image, values, side=SIDE))
    size = (over.width, over.height)
    high, wide = size[1] / values.shape[0], size[0] / values.shape[1]
    x, y = row["column"] * wide, row["row"] * high
    ImageDraw.Draw(over).rectangle((x, y, x + wide - 1, y + high - 1), outline="#62b4c6", width=2)
    both = Image.new("RGB", (2 * size[0] + 4, size[1]), "#181e25")
    both.paste(Image.fromarray(image).resize(size, Image.Resampling.NEAREST), (0, 0))
    both.paste(over, (size[0] + 4, 0))
    return png(np.asarray(both))


def pattern_url(run_id: str | None, index: int | str) -> str:
    """Address of that picture."""
    return f"/picture/{run_id}/{index}.png"

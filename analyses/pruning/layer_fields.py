"""What a config says of its layers one by one, rewritten for a model that has lost some; unknown fields are refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from attlas.errors import UnsupportedModelError

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # one entry a layer
_FIRST = ("max_window_layers",)  # holds from this layer on
_DONE = (
    *("num_hidden_layers", "n_layer", "stage_names", "out_features", "out_indices"),
    *("_sliding_window_pattern", "sliding_window_pattern"),  # Gemma 3: makes layer_types where there are none
)
_COUNTS_LAYERS = re.compile("layer|stage|pattern")


def check_layer_fields(config: Any, name: str) -> None:
    """Refuse a config with a field that seems to list or count layers and that `drop_layers` does not know.

    Raises:
        UnsupportedModelError: names the field and its value.
    """
    declared = {f.name for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    declared |= set(getattr(config, "attribute_map", {}).values())
    n_layers = config.num_hidden_layers
    for key, value in config.to_dict().items():
        lists = isinstance(value, (list, tuple, dict)) and bool(value)
        counts = isinstance(value, int) and not isinstance(value, bool) and value != 0
        if key in (*_PER_LAYER, *_FIRST, *_DONE) or not (lists or counts):
            continue
        odd = lists and len(value) == n_layers and key not in declared and not isinstance(value, dict)
        if odd or _COUNTS_LAYERS.search(key):
            raise UnsupportedModelError(
                f"{name}: the config's '{key}' ({str(value)[:60]}) may list or count layers in a way unknown here, so "
                "no block can be dropped; drop attention, MLPs or heads"
            )


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """Rewrite `config`, in place, for the layers of these numbers alone."""
    n_layers = config.num_hidden_layers
    out_indices = getattr(config, "out_indices", None)
    config.num_hidden_layers = len(kept)
    for key in _PER_LAYER:
        value = getattr(config, key, None)
        if isinstance(value, (list, tuple)) and len(value) == n_layers:
            setattr(config, key, [value[layer] for layer in kept])
    for key in _FIRST:
        if (first := getattr(config, key, None)) is not None:
            setattr(config, key, sum(layer < first for layer in kept))
    if getattr(config, "stage_names", None) is not None:
        # stage k is the stream after k layers: without a layer it equals the stage before
        stages = {sum(layer < index % (n_layers + 1) for layer in kept) for index in out_indices or [n_layers]}
        config.stage_names = ["stem", *[f"stage{index}" for index in range(1, len(kept) + 1)]]
        config.set_output_features_output_indices(out_features=None, out_indices=sorted(stages))


def silent_layer_types(config: Any, dropped: Sequence[int]) -> None:
    """Give layers without attention the kind of the first that has one, in place.

    The cache has a slot a layer, of the layer's kind, and transformers takes the length of each kind from the first slot
    of that kind: that slot must be one that is filled.
    """
    kinds = getattr(config, "layer_types", None)
    if not kinds or not dropped:
        return
    first = next(kind for layer, kind in enumerate(kinds) if layer not in dropped)
    config.layer_types = [first if layer in dropped else kind for layer, kind in enumerate(kinds)]

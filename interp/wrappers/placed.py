"""Where a model's weights are: on several devices (`device_map="auto"`), on disk, or packed in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attlas.errors import UnsupportedModelError

_PACKED = ("Linear4bit", "Linear8bitLt", "QuantLinear", "WQLinear_GEMM", "HqqLinear")


def refuse_packed(settings: Any, name: str) -> None:
    """Refuse a model whose weights are stored in few bits: every weight that is read here would be another.

    Args:
        settings: `quantization_config` of a configuration, a mapping or an object; None where there is none.

    Raises:
        UnsupportedModelError: there is one; names the method and the bits.
    """
    if settings is None:
        return
    values = settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", {})
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")) or "an unknown method")
    bits = values.get("bits") or next(
        (n for n in (4, 8) if values.get(f"load_in_{n}bit") or values.get(f"_load_in_{n}bit")), None
    )
    raise UnsupportedModelError(
        f"'{name}' is quantised ({method}{f', {bits} bits' if bits else ''}); give the unquantised model, with --dtype "
        "bfloat16 or float16 where memory is short"
    )


def require_present(hf: nn.Module, name: str) -> None:
    """Refuse modules whose weights are packed in few bits, or lie on disk or elsewhere until they are needed.

    Weights on several GPUs (`device_map="auto"`) are fine: every activation is where its layer is.

    Raises:
        UnsupportedModelError: says which.
    """
    refuse_packed(getattr(getattr(hf, "config", None), "quantization_config", None), name)
    packed = next((type(m).__name__ for m in hf.modules() if type(m).__name__ in _PACKED), None)
    if packed is not None:
        raise UnsupportedModelError(f"'{name}' is quantised ({packed}); give the unquantised model")
    away = [key for key, tensor in hf.named_parameters() if tensor.is_meta]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights of '{name}' are on disk until they are needed ({away[0]}); load it with a "
            "device_map that keeps all in memory"
        )


def on_several(hf: nn.Module) -> bool:
    """Whether weights lie on more than one device."""
    return len({parameter.device for parameter in hf.parameters()}) > 1

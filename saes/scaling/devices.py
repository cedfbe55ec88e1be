"""Peak rates of GPUs, as their makers' data sheets give them (dense, without sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, nearest


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as it is asked for.
        memory: bytes.
        bfloat16, tf32, float32: operations a second.
        bandwidth: bytes a second of its memory.
        link: bytes a second to another GPU of the same machine, one way.
    """

    name: str
    memory: float
    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float
    link: float


MACHINE = 8
"""GPUs that share a machine's links."""
BETWEEN = 50e9
"""Bytes a second, one way, that a GPU has to another machine (400 Gbit/s, assumed)."""

DEVICES = {
    device.name: device
    for device in (
        Device("h200", 141e9, 989e12, 494e12, 67e12, 4.8e12, 450e9),
        Device("h100", 80e9, 989e12, 494e12, 67e12, 3.35e12, 450e9),
        Device("a100", 80e9, 312e12, 156e12, 19.5e12, 2.04e12, 300e9),
        Device("a100-40", 40e9, 312e12, 156e12, 19.5e12, 1.56e12, 300e9),
        Device("l40s", 48e9, 362e12, 183e12, 91.6e12, 0.864e12, 32e9),
        Device("rtx4090", 24e9, 165e12, 82.6e12, 82.6e12, 1.01e12, 32e9),
    )
}


def device_named(name: str) -> Device:
    """A GPU by name.

    Raises:
        ConfigError: it is not in the list.

    Example:
        >>> from attlas.saes.scaling.devices import device_named
        >>> device_named("H100").memory
        80000000000.0
    """
    if name.lower() not in DEVICES:
        raise ConfigError(
            f"the rates of '{name}' are not known; give one of {', '.join(DEVICES)}{nearest(name, DEVICES)}"
        )
    return DEVICES[name.lower()]

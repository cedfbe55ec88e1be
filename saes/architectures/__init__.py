"""The architectures: one file and one line here each."""

from __future__ import annotations

from attlas.errors import ConfigError
from attlas.saes.architectures.batchtopk import BatchTopKSAE
from attlas.saes.architectures.gated import GatedSAE
from attlas.saes.architectures.jumprelu import JumpReLUSAE
from attlas.saes.architectures.matryoshka import MatryoshkaSAE
from attlas.saes.architectures.standard import StandardSAE
from attlas.saes.architectures.topk import TopKSAE
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig

ARCHITECTURES: dict[str, type[SAE]] = {
    "standard": StandardSAE,
    "gated": GatedSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
    "matryoshka": MatryoshkaSAE,
}


def architecture(name: str) -> type[SAE]:
    """The class of an architecture.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "lorsa":
        raise ConfigError(
            "a Lorsa stands for a whole attention layer and is no autoencoder; attlas train --arch lorsa --layer L trains one, "
            "and attlas.saes.train_lorsa"
        )
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture '{name}' is unknown; use one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def create_sae(cfg: SAEConfig) -> SAE:
    """An SAE of `cfg.arch` with zero weights (see `attlas.saes.training.init.initialise`).

    Raises:
        ConfigError: the architecture is unknown.
    """
    return architecture(cfg.arch)(cfg)

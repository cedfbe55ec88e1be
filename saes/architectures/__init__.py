"""The architectures: one file and one line here each."""

from __future__ import annotations

from attlas.saes.architectures.batchtopk import BatchTopKSAE
from attlas.saes.architectures.gated import GatedSAE
from attlas.saes.architectures.jumprelu import JumpReLUSAE
from attlas.saes.architectures.matryoshka import MatryoshkaSAE
from attlas.saes.architectures.standard import StandardSAE
from attlas.saes.architectures.topk import TopKSAE
from attlas.saes.base import SAE

ARCHITECTURES: dict[str, type[SAE]] = {
    "standard": StandardSAE,
    "gated": GatedSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
    "matryoshka": MatryoshkaSAE,
}

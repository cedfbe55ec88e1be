"""A random autoencoder of any architecture, which tests of files share."""

from __future__ import annotations

import torch

from attlas.saes import ARCHITECTURES, SAE, SAEConfig
from attlas.saes.architectures import create_sae

ARCHS = sorted(ARCHITECTURES)
HOOK = "blocks.2.attn.hook_z"


def random_sae(arch: str, **more: object) -> SAE:
    generator = torch.Generator().manual_seed(3)
    facts = {"hook_name": HOOK, "model_name": "gpt2-mini", "n_heads": 3, "d_head": 4, "context_size": 64}
    sae = create_sae(SAEConfig(**{"d_in": 12, "d_sae": 20, "k": 4, "arch": arch, **facts, **more}))
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() * 0.3 if name == "threshold" else noise * 0.5)
        if arch in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.3)
    return sae

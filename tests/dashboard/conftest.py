"""A small real workspace: every kind of run the pages show, made in well under a minute."""

from __future__ import annotations

import pytest

from attlas.analyses.entropy import entropy
from attlas.analyses.features import FeaturesConfig, features
from attlas.analyses.redundancy import redundancy
from attlas.analyses.vit import vit
from attlas.data.images import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import EvalConfig, TrainConfig, evaluate, train_sae
from attlas.saes.sources import Inputs

HOOK = "blocks.3.attn.hook_z"


@pytest.fixture(scope="session")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    gpt2_mini: HookedModel,
    vit_mini: HookedModel,
    val_tokens: TokenDataset,
    glyphs: ImageDataset,
) -> Workspace:
    found = Workspace(tmp_path_factory.mktemp("atlas") / "workspace")
    trained = train_sae(TrainConfig(model="gpt2-mini", hooks=(HOOK,), k=8, d_sae=256, n_tokens=20_000))
    (run,) = trained.save(found)
    sae = trained.saes[HOOK]
    evaluated = evaluate(sae, gpt2_mini, Inputs.of(val_tokens), EvalConfig(n_bootstrap=50))
    evaluated.save(found, parents=(run.id,))
    told = features(gpt2_mini, sae, val_tokens, FeaturesConfig())
    told.save(found, gpt2_mini.ref, val_tokens.ref, parents=(run.id,))
    entropy(gpt2_mini, val_tokens).save(found, gpt2_mini.ref, val_tokens.ref)
    redundancy(gpt2_mini, val_tokens).save(found, gpt2_mini.ref, val_tokens.ref)
    vit(vit_mini, glyphs).save(found, vit_mini.ref, glyphs.ref)
    return found

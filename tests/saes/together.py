"""What each of two processes runs for test_parallel: every form of sharing beside the same training alone; numbers as JSON.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python together.py FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from made import random_sae

from attlas.analyses.features import FeaturesConfig, features
from attlas.analyses.features.codes import help_features
from attlas.cli import main as attlas
from attlas.data.processes.group import Group, join
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import load_model
from attlas.saes import ARCHITECTURES, SAE, EvalConfig, SAEConfig, TrainConfig, evaluate_all, train_sae
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.loop import train_loop
from attlas.saes.training.parallel.choice import Peers
from attlas.saes.training.parallel.share import Share
from attlas.saes.training.parallel.start import begun
from attlas.saes.training.store import read_manifest, store_source

D, F, STEPS, BATCH = 12, 40, 16, 32
HOOK, GLOB = "blocks.1.attn.hook_z", "blocks.[01].attn.hook_z"
SMALL = TrainConfig(
    hooks=(GLOB,), d_sae=64, k=4, n_tokens=768, batch_size=64, buffer_tokens=256, capture_batch=4, log_every=4,
    checkpoint_every=7, seq_len=24, grad_clip=None, dead_after=64,
)  # fmt: skip


def sparse_rows(chunk: int) -> dict[str, torch.Tensor]:
    """Sums of a few directions: features to find, and many that die."""
    generator = torch.Generator().manual_seed(chunk)
    directions = torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(64, 20, generator=generator) * (torch.rand(64, 20, generator=generator) < 0.15)
    return {HOOK: codes @ directions}


def trained(arch: str, share: Share, dtype: str, fused: bool) -> tuple[SAE | None, list[dict[str, Any]]]:
    config = TrainConfig(
        hooks=(HOOK,), arch=arch, d_sae=F, k=3, n_tokens=STEPS * BATCH, batch_size=BATCH, buffer_tokens=128,
        log_every=5, dead_after=BATCH, lr=3e-3, k_aux=4,
    )  # fmt: skip
    buffer = MixingBuffer(sparse_rows, 128, 0)
    sample = buffer.peek(128)[HOOK]
    cfg = SAEConfig(
        d_in=D, d_sae=F, arch=arch, k=3, k_aux=4, aux_coefficient=1.0, sparsity=0.3, bandwidth=0.5, dtype=dtype
    )
    options = {
        "seed": 0, "learning_rate": 3e-3, "normalise": True, "active_subspace": True, "variance": 0.99, "fused": fused,
        "clip": config.clip,
    }  # fmt: skip
    trainer = begun(share, HOOK, HOOK, cfg, sample, **options)
    with torch.no_grad():
        trainer.sae.b_enc.view(-1, F // 2)[:, :4] -= 5  # dead from the start, some in each half
    history = train_loop([trainer], buffer, config, share=share)
    return share.finished({HOOK: trainer.finish()}).get(HOOK), history.rows


def apart(one: SAE, other: SAE) -> float:
    """The largest difference of two SAEs' weights and thresholds."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def architectures(group: Group) -> dict[str, Any]:
    """How far each architecture, shared in each form, ends from the same training alone."""
    found: dict[str, Any] = {}
    for arch in ARCHITECTURES:
        for dtype in ("float64", "float32"):
            alone, rows = trained(arch, Share(), dtype, fused=dtype == "float32")
            assert alone is not None
            for form in ("data", "features"):
                sae, shared_rows = trained(arch, Share(group, form, (HOOK,)), dtype, fused=True)
                if sae is None:
                    continue
                curves = [
                    max(abs(a[key] - b[key]) for a, b in zip(rows, shared_rows, strict=True))
                    for key in ("loss", "mse", "l0", "explained_variance", "dead_fraction")
                ]
                found[f"{arch} {form} {dtype}"] = {
                    "weights": apart(alone, sae), "curve": max(curves), "dead": rows[-1]["dead_fraction"]
                }  # fmt: skip
    return found


def ties(group: Group) -> bool:
    """Equal activations at the last place go to the lower row, then feature, over processes as within one."""
    whole = torch.tensor([[1.0, 2.0, 1.0, 0.0], [1.0, 1.0, 0.0, 3.0]])
    expected = torch.tensor([[1.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    r = group.rank
    by_row = Peers(group, r, 0, 2, 4).choose(whole[r : r + 1], 2)
    by_feature = Peers(group, 0, 2 * r, 2, 4).choose(whole[:, 2 * r : 2 * r + 2], 2)
    right = torch.equal(by_row, expected[r : r + 1]) and torch.equal(by_feature, expected[:, 2 * r : 2 * r + 2])
    return all(group.all_of(right))


def real(group: Group, folder: Path) -> dict[str, Any]:
    """Trainings on gpt2-mini: every form beside one process, interrupted there and gone on with alone."""
    model = load_model("gpt2-mini", device="cpu")
    data = TokenDataset.from_tokens(
        torch.randint(3, 4000, (11, 24), generator=torch.Generator().manual_seed(0)), "noise"
    )
    alone = train_sae(SMALL, model=model, data=data, progress=False)
    found: dict[str, Any] = {}
    for form in ("hooks", "data", "features"):
        kept = folder / form
        result = train_sae(SMALL, model=model, data=data, folder=kept, group=group, parallel=form, progress=False)
        if not group.first:
            assert not result.saes
            continue
        again = train_sae(SMALL, model=model, data=data, folder=kept, resume=True, progress=False)
        rows = [{k: v for k, v in row.items() if k in ("hook", "step", "loss", "l0")} for row in result.history.rows]
        found[form] = {
            "apart": max(apart(result.saes[h], alone.saes[h]) for h in alone.saes),
            "resumed": max(apart(again.saes[h], alone.saes[h]) for h in alone.saes),
            "rows": [(r["hook"], r["step"]) for r in rows] == [(r["hook"], r["step"]) for r in alone.history.rows],
            "configs": [result.saes[h].cfg == alone.saes[h].cfg for h in alone.saes],
            "live": len((kept / "training.jsonl").read_text().splitlines()),
        }
    # begun alone, gone on with by two
    started = folder / "alone"
    if group.first:
        train_sae(SMALL, model=model, data=data, folder=started, progress=False)
    group.of_first(None)
    for form in ("data", "features", "hooks"):
        result = train_sae(
            SMALL, model=model, data=data, folder=started, resume=True, group=group, parallel=form, progress=False
        )
        if group.first:
            found[form]["taken over"] = max(apart(result.saes[h], alone.saes[h]) for h in alone.saes)
    return found


def passes(group: Group, folder: Path) -> dict[str, bool]:
    """A store, an evaluation and a features pass by two, beside those of one."""
    model = load_model("gpt2-mini", device="cpu")
    data = TokenDataset.from_tokens(
        torch.randint(3, 4000, (11, 24), generator=torch.Generator().manual_seed(1)), "noise"
    )
    sae = random_sae("topk", d_in=192, d_sae=48, n_heads=6, d_head=32, hook_name=HOOK, model_hash=model.weight_hash)
    found = {}
    stores = [dataclasses.replace(SMALL, store=folder / name) for name in ("one", "two")]
    if group.first:
        store_source(model, data, [HOOK], stores[0])
    group.of_first(None)
    store_source(model, data, [HOOK], stores[1], group=group)
    one, two = (read_manifest(store.store or folder) for store in stores)
    found["store"] = one == two  # hashes of all shards among it
    quick = EvalConfig(controls=("pca",), n_bootstrap=20, eval_batch=4)
    shared = evaluate_all([(sae, None)], model, data, quick, group=group)
    small = FeaturesConfig(n_top=2, n_sample=4, null_draws=0, batch_size=4, n_scored=2, n_causal=1)
    if not group.first:
        help_features(model, sae, data, small, group=group)
        return {}
    (alone,) = evaluate_all([(sae, None)], model, data, quick)
    found["eval"] = alone.tables() == shared[0].tables() and bool((alone.density_F == shared[0].density_F).all())
    together = features(model, sae, data, small, group=group).tables()
    found["features"] = together == features(model, sae, data, small).tables()
    return found


def refusals(group: Group) -> dict[str, str]:
    """What cannot be shared, in words."""
    model = load_model("gpt2-mini", device="cpu")
    data = TokenDataset.from_tokens(torch.randint(3, 4000, (4, 24)), "noise")
    found = {}
    for name, form, changes in (
        ("batch", "data", {"batch_size": 63}),
        ("hooks", "hooks", {"hooks": (HOOK,)}),
        ("features", "features", {"d_sae": 65}),
        ("k", "features", {"d_sae": 6, "k": 4}),
    ):
        try:
            train_sae(
                dataclasses.replace(SMALL, **changes),
                model=model,
                data=data,
                group=group,
                parallel=form,
                progress=False,
            )
        except ConfigError as error:
            found[name] = str(error)
    return found


def commands(folder: Path) -> dict[str, int]:
    """The command line: a training, one that is refused, and one whose other process dies."""
    usual = [
        "train",
        "--hooks",
        HOOK,
        "--d-sae",
        "64",
        "--k",
        "4",
        "--n-tokens",
        "512",
        "--batch-size",
        "64",
        "--device",
        "cpu",
    ]
    usual += ["--buffer-tokens", "256", "--seq-len", "24", "--workspace", str(folder / "workspace")]
    found = {"train": attlas([*usual, "--parallel", "features", "--json"])}
    found["refused"] = attlas([*usual, "--sweep-k", "2", "4"])
    if join("cpu").rank == 1:
        os._exit(0)
    found["left"] = attlas(usual)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    group = join("cpu")
    found = {
        "architectures": architectures(group),
        "ties": ties(group),
        "real": real(group, folder),
        "passes": passes(group, folder),
        "refusals": refusals(group),
    }
    found["commands"] = commands(folder)
    (folder / "found.json").write_text(json.dumps(found))
    os._exit(0)  # the other one is gone; nothing is parted from


if __name__ == "__main__":
    main(Path(sys.argv[1]))

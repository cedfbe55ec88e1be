"""Pruned checkpoints are opened by a process that has torch and transformers and no attlas."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attlas.analyses.pruning.checkpoint import export, load_pruned
from attlas.analyses.pruning.head_surgery import plan_heads
from attlas.data.folders import replace_folder
from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError, LayerRangeError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.config import ModelConfig
from attlas.interp.drop import Drop, masked

CHECKOUT = Path(__file__).resolve().parents[3]
STRANGER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "attlas":
            raise ImportError("attlas is not installed here")
sys.meta_path.insert(0, Block())
jobs, checkout = sys.argv[1:]
sys.path = [p for p in sys.path if p.rstrip("/") != checkout]
import torch, transformers
results = {}
for case, (folder, x, auto) in torch.load(jobs, weights_only=True).items():
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        result = {"logits": model(x).logits, "kv": 0, "equal": True}
        if not x.is_floating_point():
            layers = model(x, use_cache=True).past_key_values.layers
            result["kv"] = sum(l.keys.nbytes + l.values.nbytes for l in layers if getattr(l, "keys", None) is not None)
            a, b = (model.generate(x[:1, :8], max_new_tokens=8, do_sample=False, use_cache=u, pad_token_id=0,
                                   eos_token_id=None) for u in (True, False))
            result["equal"] = bool((a == b).all())
    results[case] = result
torch.save(results, jobs + ".out")
"""

# model → the drop, the format, the share of the KV cache that stays. The tiny Llama has 3 layers of 6 heads on 2 kv
# heads (heads 0–2 share one), gpt2-mini and vit-mini 4 layers of 6 heads.
ONE_HEAD_EACH = ((0, 1), (1, 5), (2, 0), (3, 3))
GROUP_EACH = ((0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (2, 5))
CASES: dict[str, tuple[str, Drop, str, float]] = {
    "llama compact": ("tiny_llama", Drop(attn=(0, 2), mlp=(1,)), "compact", 1 / 3),
    "llama stock": ("tiny_llama", Drop(attn=(0,), mlp=(1,), heads=((2, 1),)), "stock", 1.0),
    "llama blocks": ("tiny_llama", Drop(blocks=(1,), attn=(2,), heads=((0, 2),)), "compact", 1 / 3),
    "llama heads": (
        "tiny_llama",
        Drop(heads=((0, 0), (0, 4), (1, 3), (1, 4), (1, 5), (2, 1))),
        "compact",
        (2 + 1 + 2) / 6,
    ),
    "llama heads stock": ("tiny_llama", Drop(heads=GROUP_EACH), "stock", 1 / 2),
    "gpt2 compact": ("gpt2_mini", Drop(attn=(0, 2), mlp=(3,), heads=((1, 0), (1, 3))), "compact", (4 + 6) / 24),
    "gpt2 stock": ("gpt2_mini", Drop(attn=(0,), mlp=(3,), heads=((1, 0), (1, 3))), "stock", 1.0),
    "gpt2 blocks": ("gpt2_mini", Drop(blocks=(0, 3)), "stock", 1 / 2),
    "vit compact": ("vit_mini", Drop(attn=(1,), mlp=(2,), heads=((0, 1), (2, 3), (2, 4))), "compact", 0),
    "vit blocks": ("vit_mini", Drop(blocks=(1,)), "compact", 0),
    "vit heads stock": ("vit_mini", Drop(heads=ONE_HEAD_EACH), "stock", 0),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, glyphs: ImageDataset) -> dict:
    """Every case exported, then opened by one process without attlas: case → what it and the masked model computed."""
    base = tmp_path_factory.mktemp("pruned")
    torch.manual_seed(0)
    jobs, facts = {}, {}
    for index, (case, (name, drop, format, _)) in enumerate(CASES.items()):
        model: HookedModel = request.getfixturevalue(name)
        vision = model.cfg.family == "vit"
        inputs = glyphs.pixels[:4] if vision else torch.randint(0, model.cfg.d_vocab, (2, 24))
        auto = "AutoModelForImageClassification" if vision else "AutoModelForCausalLM"
        with torch.no_grad():
            dense = model(inputs)
            with masked(model, drop):
                expected = model(inputs)
        done = export(model, drop, base / f"case{index}", format=format, verify=False)
        jobs[case] = (str(done.folder), inputs, auto)
        facts[case] = {"dense": dense, "expected": expected, "done": done, "model": model}
    torch.save(jobs, base / "jobs.pt")
    environment = {**os.environ, "HF_HOME": str(base / "hf"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", STRANGER, str(base / "jobs.pt"), str(CHECKOUT)]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=base, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    found = torch.load(base / "jobs.pt.out", weights_only=True)
    return {case: {**facts[case], **found[case]} for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_opens_without_attlas(opened: dict, case: str) -> None:
    _, _, format, share = CASES[case]
    it = opened[case]
    cfg, done = it["model"].cfg, it["done"]
    assert (it["logits"] - it["expected"]).abs().max() < 1e-4 < (it["dense"] - it["expected"]).abs().max()
    assert it["equal"], "generate with and without cache differ"
    assert it["kv"] == round(share * cfg.n_layers * cfg.n_kv_heads * cfg.d_head * 2 * 2 * 24 * 4)
    smaller = done.n_parameters < sum(p.numel() for p in it["model"].hf.parameters())
    assert smaller == (case not in ("llama stock", "gpt2 stock"))
    assert done.format == format or case == "vit blocks"


def test_compact_opens_with_attlas_alone(opened: dict) -> None:
    it = opened["gpt2 compact"]
    folder = it["done"].folder
    tokens = torch.randint(0, 4096, (2, 24))
    with torch.no_grad(), masked(it["model"], CASES["gpt2 compact"][1]):
        expected = it["model"](tokens)
    with torch.no_grad():
        assert (load_pruned(folder)(tokens).logits - expected).abs().max() < 1e-4
    card = (folder / "README.md").read_text()
    assert "attention of layers: 0, 2" in card
    assert "heads (layer.head): 1.0, 1.3" in card
    assert "trust_remote_code=True" in card
    assert "trust_remote_code" not in (opened["gpt2 blocks"]["done"].folder / "README.md").read_text()
    assert "still cost time" in (opened["gpt2 stock"]["done"].folder / "README.md").read_text()


def test_blocks_load_as_a_shorter_attlas_model(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    export(gpt2_mini, Drop(blocks=(1, 2)), tmp_path / "out", verify=False)
    assert load_model(tmp_path / "out", device="cpu").cfg.n_layers == 2
    assert gpt2_mini.hf.config.num_hidden_layers == 4
    assert len(gpt2_mini.hf.transformer.h) == 4


def test_bad_input_leaves_nothing(gpt2_mini: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(LayerRangeError, match="layer 9"):
        export(gpt2_mini, Drop(attn=(9,)), out)
    with pytest.raises(ConfigError, match="keep at least one"):
        export(gpt2_mini, Drop(attn=(0, 1, 2, 3)), out)
    with monkeypatch.context() as patch:
        patch.setattr("attlas.analyses.pruning.checkpoint.shutil.copyfile", lambda *_a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(gpt2_mini, Drop(attn=(0,)), out, verify=False)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        export(gpt2_mini, Drop(attn=(0,)), out)
    assert (out / "mine.txt").read_text() == "keep"


def test_only_what_attlas_wrote_is_replaced(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    """A stranger's folder, a file added to an export, the source and its parents: refused, and nothing changes."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="was not written by attlas prune"):
        export(gpt2_mini, Drop(attn=(0,)), out, force=True, verify=False)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    export(gpt2_mini, Drop(attn=(0,)), out, verify=False)
    with pytest.raises(ConfigError, match="not empty"):
        export(gpt2_mini, Drop(attn=(1,)), out, verify=False)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds 'notes'"):
        export(gpt2_mini, Drop(attn=(1,)), out, force=True, verify=False)
    shutil.rmtree(out / "notes")
    for place, source in ((out, out), (tmp_path, out), (tmp_path / "link", out)):
        if place.name == "link":
            place.symlink_to(out)
        with pytest.raises(ConfigError, match="the source model"):
            export(gpt2_mini, Drop(attn=(1,)), place, force=True, source=source, verify=False)
    export(gpt2_mini, Drop(attn=(1,)), out, force=True, verify=False)
    assert "attention of layers: 1" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_the_current_folder_is_refused(gpt2_mini: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", "..", tmp_path.parent):
        with pytest.raises(ConfigError, match="current folder"):
            export(gpt2_mini, Drop(attn=(0,)), place, force=True, verify=False)


def test_folders_swap_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no moment without the old or the new folder; where the file system cannot swap, the old one comes back."""
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / folder.name).touch()
    gone: list[bool] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        "attlas.data.folders.shutil.rmtree", lambda *a, **k: (gone.append(old.exists()), rmtree(*a, **k))
    )
    replace_folder(new, old)
    assert gone == [True]
    assert [path.name for path in old.iterdir()] == ["new"]
    assert not new.exists()
    new.mkdir()
    monkeypatch.setattr("attlas.data.folders._swap", lambda *_a: False)
    rename, calls = Path.rename, []

    def once(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("power cut")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match="power cut"):
        replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ["new"]


@given(
    size=st.integers(1, 4),
    n_kv=st.integers(1, 4),
    dropped=st.sets(st.integers(0, 15)),
)
def test_head_plans_keep_groups_equal(size: int, n_kv: int, dropped: set[int]) -> None:
    """Every kept kv head serves equally many query heads, in order; what was to go is gone or silent."""
    cfg = ModelConfig("llama", "llama", 1, size * n_kv, n_kv, 8, 2, 8, 8)
    gone = sorted(head for head in dropped if head < size * n_kv)
    plan = plan_heads(cfg, gone)
    share = len(plan.keep) // len(plan.keep_kv)
    assert [head // size for head in plan.keep] == [kv for kv in plan.keep_kv for _ in range(share)]
    assert set(plan.silent) | (set(range(size * n_kv)) - set(plan.keep)) == set(gone)
    if size == 1 and len(gone) < n_kv:
        assert not plan.silent


def test_shared_kv_layers_are_refused(tiny_llama: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_llama.hf.config, "num_kv_shared_layers", 2, raising=False)
    with pytest.raises(UnsupportedModelError, match="2 layers that share"):
        export(tiny_llama, Drop(attn=(0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()

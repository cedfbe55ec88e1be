"""Pruned checkpoints are opened by a process that has torch and transformers and no attlas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attlas.analyses.drop_selection import Drop, masked
from attlas.analyses.prune_export import export, load_pruned
from attlas.data.images import ImageDataset
from attlas.errors import ConfigError, LayerRangeError
from attlas.interp import HookedModel, load_model

CHECKOUT = Path(__file__).resolve().parents[2]
STRANGER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "attlas":
            raise ImportError("attlas is not installed here")
sys.meta_path.insert(0, Block())
folder, inputs, out, auto, checkout = sys.argv[1:]
sys.path = [p for p in sys.path if p.rstrip("/") != checkout]
import torch, transformers
x = torch.load(inputs)
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    result = {"logits": model(x).logits, "kv": 0, "equal": True}
    if not x.is_floating_point():
        cache = model(x, use_cache=True).past_key_values
        result["kv"] = sum(l.keys.nbytes + l.values.nbytes for l in cache.layers if getattr(l, "keys", None) is not None)
        a, b = (model.generate(x[:1, :8], max_new_tokens=8, do_sample=False, use_cache=u, pad_token_id=0, eos_token_id=None)
                for u in (True, False))
        result["equal"] = bool((a == b).all())
torch.save(result, out)
"""


def _stranger(folder: Path, inputs: torch.Tensor, tmp_path: Path, auto: str = "AutoModelForCausalLM") -> dict:
    torch.save(inputs, tmp_path / "in.pt")
    arguments = [str(folder), str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), auto, str(CHECKOUT)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(tmp_path / "out.pt")


CASES = {
    "compact": (Drop(attn=(0, 2), mlp=(1,)), "compact", 1 / 3),
    "stock": (Drop(attn=(0,), mlp=(1,), heads=((2, 1),)), "stock", 1.0),
    "blocks": (Drop(blocks=(1,), attn=(2,), heads=((0, 2),)), "compact", 1 / 3),
}


@pytest.mark.parametrize("case", CASES)
def test_llama_opens_without_attlas(tiny_llama: HookedModel, tiny_llama_dir: Path, tmp_path: Path, case: str) -> None:
    drop, format, share = CASES[case]
    tokens = torch.randint(0, 101, (2, 16))
    with torch.no_grad(), masked(tiny_llama, drop):
        expected = tiny_llama(tokens)
    dense = tiny_llama(tokens)
    export(tiny_llama, drop, tmp_path / "out", format=format, source=tiny_llama_dir)
    found = _stranger(tmp_path / "out", tokens, tmp_path)
    assert (found["logits"] - expected).abs().max() < 1e-4 < (dense - expected).abs().max()
    assert found["equal"]
    assert found["kv"] == round(share * 3 * 2 * 2 * 16 * 2 * 8 * 4)


def test_gpt2_compact_opens_without_attlas(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    drop = Drop(attn=(0, 2), mlp=(3,))
    tokens = torch.randint(0, 4096, (2, 24))
    with torch.no_grad(), masked(gpt2_mini, drop):
        expected = gpt2_mini(tokens)
    done = export(gpt2_mini, drop, tmp_path / "out")
    found = _stranger(tmp_path / "out", tokens, tmp_path)
    assert (found["logits"] - expected).abs().max() < 1e-4
    assert found["equal"]
    assert found["kv"] == 2 * 2 * 2 * 24 * 192 * 4
    with torch.no_grad():
        assert (load_pruned(done.folder)(tokens).logits - expected).abs().max() < 1e-4
    assert "attention of layers: 0, 2" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("drop", [Drop(attn=(1,), mlp=(2,)), Drop(blocks=(1,))], ids=["compact", "blocks"])
def test_vit_opens_without_attlas(vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path, drop: Drop) -> None:
    pixels = glyphs.pixels[:4]
    with torch.no_grad(), masked(vit_mini, drop):
        expected = vit_mini(pixels)
    export(vit_mini, drop, tmp_path / "out")
    found = _stranger(tmp_path / "out", pixels, tmp_path, "AutoModelForImageClassification")
    assert (found["logits"] - expected).abs().max() < 1e-4


def test_blocks_load_as_a_shorter_attlas_model(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    export(gpt2_mini, Drop(blocks=(1, 2)), tmp_path / "out")
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
        patch.setattr("attlas.analyses.prune_export.shutil.copyfile", lambda *_a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(gpt2_mini, Drop(attn=(0,)), out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        export(gpt2_mini, Drop(attn=(0,)), out)
    assert (out / "mine.txt").read_text() == "keep"

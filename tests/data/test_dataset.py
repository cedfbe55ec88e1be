"""Text, images and what a store was captured on have one shape: batches, masks, targets, hashes and splits."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from attlas.data.dataset import NO_TARGET, Dataset
from attlas.data.images.dataset import ImageDataset, load_images
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import ConfigError, ImageDataError, TextDataError
from attlas.interp import HookedModel
from attlas.saes.training.store import StoredInputs

DOCUMENTS = [[0, 5, 6, 7, 8], [0, 9], [0, 1, 2], [0, 3, 4, 5]]


@pytest.fixture(scope="module")
def padded() -> TokenDataset:
    return TokenDataset.padded(DOCUMENTS, "documents", pad=99)


@pytest.fixture(params=["text", "padded", "images"])
def data(
    request: pytest.FixtureRequest, padded: TokenDataset, val_tokens: TokenDataset, glyphs: ImageDataset
) -> Dataset:
    found: Dataset = {"text": val_tokens.take(7), "padded": padded, "images": glyphs.take(30)}[request.param]
    return found


def test_minibatches_are_the_rows(data: Dataset) -> None:
    batches = data.minibatches(3)
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), data.tensor)
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(len(data)))
    if data.mask is None:
        assert all(batch.mask is None for batch in batches)
        assert torch.equal(torch.cat(list(data.batches(3))), data.tensor)
    targets = torch.cat([batch.targets for batch in batches])  # type: ignore[misc]
    assert torch.equal(targets, data.targets)  # type: ignore[arg-type]
    own = torch.arange(len(data))
    assert torch.cat([batch.targets for batch in data.minibatches(3, own)]).tolist() == own.tolist()  # type: ignore[misc]


def test_parts_are_named_by_what_they_hold(data: Dataset) -> None:
    first, second = data.split(0.5, seed=3)
    assert len(first) + len(second) == len(data)
    assert len({first.hash, second.hash, data.hash}) == 3
    assert first.name == data.name == first.ref.name
    assert data.split(0.5, seed=3)[0].hash == first.hash != data.split(0.5, seed=4)[0].hash
    rows = [2, 0]
    assert data.select(rows).hash == data.select(torch.tensor(rows)).hash != data.select([0, 2]).hash
    assert torch.equal(data.select(rows).tensor, data.tensor[rows])
    assert data.take(2).hash == data.select([0, 1]).hash
    with pytest.raises((TextDataError, ImageDataError), match="cannot be split 0%"):
        data.split(0.0)


def test_equal_content_has_one_hash_however_it_was_made(vit_mini: HookedModel, gpt2_mini: HookedModel) -> None:
    few = load_images("embedded:glyphs", vit_mini.image_spec, n_images=8)
    assert few.hash == load_images("embedded:glyphs", vit_mini.image_spec, n_images=20).take(8).hash
    assert few.hash != dataclasses.replace(few, labels=None).take(7).hash
    text = load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=16, n_tokens=64)
    assert text.hash == load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=16, n_tokens=128).take(4).hash
    by_hand = hashlib.sha256(str(tuple(text.tokens.shape)).encode() + text.tokens.numpy().tobytes()).hexdigest()
    assert text.hash == by_hand[:16]


def test_padding_is_behind_the_text_and_is_no_target(padded: TokenDataset) -> None:
    assert padded.tokens.tolist()[1] == [0, 9, 99, 99, 99]
    assert padded.targets.tolist()[1] == [0, 9, NO_TARGET, NO_TARGET, NO_TARGET]  # type: ignore[union-attr]
    assert padded.n_tokens == sum(map(len, DOCUMENTS))
    assert padded.hash != TokenDataset.from_tokens(padded.tokens, "all text").hash
    whole = padded.select([0])
    assert whole.mask is None  # nothing is padded in it
    assert whole.hash == TokenDataset.from_tokens(torch.tensor(DOCUMENTS[:1]), "other").hash
    with pytest.raises(TextDataError, match="'documents' is padded"):
        padded.batches(2)
    left = torch.tensor([[False, True], [True, True]])
    with pytest.raises(TextDataError, match="padding in front of text"):
        TokenDataset.from_tokens(torch.zeros(2, 2, dtype=torch.long), "left", left)
    with pytest.raises(TextDataError, match=r"torch.bool \(1, 2\)"):
        TokenDataset.from_tokens(torch.zeros(2, 2, dtype=torch.long), "short", left[:1])
    with pytest.raises(TextDataError, match="fewer than two tokens"):
        TokenDataset.padded([[1, 2], [1]], "short")


def test_what_a_store_was_captured_on_is_known_by_name_alone(tmp_path: Path) -> None:
    stored = StoredInputs("t.txt", "0" * 16, 12, tmp_path)
    assert isinstance(stored, Dataset)
    assert (len(stored), stored.ref.hash, bool(stored)) == (12, "0" * 16, True)
    for use in (lambda: stored.batches(2), lambda: stored.minibatches(2), lambda: stored.split(0.5)):
        with pytest.raises(ConfigError, match=r"t\.txt.*give the data itself"):
            use()


def test_documents_are_loaded_one_a_row(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    tokenizer = gpt2_mini.tokenizer
    texts = ["The cat sat on the mat.", "Two dogs.", "A much longer line about nothing that matters to anyone " * 3]
    (tmp_path / "t.txt").write_text("\n\n".join(texts), encoding="utf-8")
    data = load_tokens(tmp_path / "t.txt", tokenizer, seq_len=24, packed=False)
    assert data.mask is not None
    rows = {tuple(row[keep].tolist()) for row, keep in zip(data.tokens, data.mask, strict=True)}
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert rows == {(bos, *tokenizer(text.strip())["input_ids"], eos)[:24] for text in texts}
    few = load_tokens("embedded:val", tokenizer, seq_len=32, n_tokens=320, packed=False)
    assert 320 - 32 < few.n_tokens <= 320
    assert load_tokens("embedded:val", tokenizer, seq_len=32, n_tokens=320, packed=False).hash == few.hash

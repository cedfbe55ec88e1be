"""Where a text begins (BOS), and conversations by chat templates: prompts, corpora, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attlas.data.text import load_tokens
from attlas.data.tokenizing import bos_of, conversation, render
from attlas.errors import PromptError, TextDataError, UnsupportedModelError
from attlas.interp.tokens import token_texts

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (  # as Phi-3's, with BOS in the template as Llama's has it
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('only user and assistant') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]


def _tokenizer(bos: str | None = "<s>", eos: str | None = "</s>", *, adds: bool, template: str | None = None) -> Any:
    """One letter a token; `adds` puts BOS in front as Llama's does."""
    vocab = {letter: i for i, letter in enumerate("abc dé")}
    tokenizer = Tokenizer(models.WordLevel(vocab | {"?": 6}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 7)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("bos", "eos", "adds", "found"),
    [
        ("<s>", "</s>", True, 7),  # Llama, Gemma
        ("<s>", "</s>", False, None),  # gpt-oss, Phi-3
        ("<s>", "<s>", False, 7),  # GPT-2, Pythia: documents stand behind it
        (None, "</s>", False, None),  # Qwen
    ],
)
def test_the_token_that_texts_begin_with(tmp_path: Path, bos: str, eos: str, adds: bool, found: int | None) -> None:
    tokenizer = _tokenizer(bos, eos, adds=adds)
    assert bos_of(tokenizer) == found
    (tmp_path / "a.txt").write_text("ab\n\n<s>ba\n\nc</s>")  # the second brings its own BOS, the third its own EOS
    separate = {tuple(r) for r in load_tokens(tmp_path / "a.txt", tokenizer, seq_len=6, packed=False).tokens.tolist()}
    front = [] if found is None else [7]
    ends = tokenizer.eos_token_id
    given = [7] if found is None else []  # where texts do not begin with it, it is what the text says
    rows = [[*front, 0, 1, ends], [*front, *given, 1, 0, ends], [*front, 2, 8, *([ends] if ends != 8 else [])]]
    width = max(map(len, rows))
    assert separate == {(*r, *[ends] * (width - len(r))) for r in rows}
    packed = load_tokens(tmp_path / "a.txt", tokenizer, seq_len=4).tokens
    assert found is None or (packed[:, 0] == 7).all()
    assert not (packed[:, 1:-1].eq(8) & packed[:, 2:].eq(8)).any()  # nor EOS twice


def test_no_tokenizer_has_no_bos() -> None:
    assert bos_of(None) is None


@pytest.mark.parametrize("open_end", [True, False])
@pytest.mark.parametrize("talk", [TALK, TALK[:1]])
def test_a_conversation_is_what_its_template_makes_of_it(talk: list[dict[str, str]], open_end: bool) -> None:
    """Tokens of the text, BOS not twice, against the tokenizer's own way from messages to ids."""
    tokenizer = _tokenizer(adds=True, template=TEMPLATE)
    text = render(tokenizer, talk, generation_prompt=open_end)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    going_on = {"continue_final_message": True} if len(talk) == 2 else {"add_generation_prompt": True}
    assert ids == list(tokenizer.apply_chat_template(talk, **(going_on if open_end else {}))["input_ids"])
    last = token_texts(tokenizer, ids)[-1]
    assert last == (("<|assistant|>" if len(talk) == 1 else "a") if open_end else "<|end|>")
    assert token_texts(tokenizer, ids)[:4] == ["<s>", "<|user|>", "a", "b"]


def test_what_a_person_types_as_a_conversation(tmp_path: Path) -> None:
    for wrap in (TALK, {"messages": TALK}):
        (tmp_path / "talk.json").write_text("\ufeff" + json.dumps(wrap))
        assert conversation(json.dumps(wrap)) == conversation(f"@{tmp_path / 'talk.json'}") == TALK
    for text in ("[a] plain brackets", "{1}", "[1, 2]", "  hello"):
        assert conversation(text) == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("", "is empty"),
        ("[]", "has no message"),
        ("@/no/such.json", "cannot be read"),
        ('[{"role": "user"', "is not JSON"),
        ('[{"role": "user"}]', "message 0 has 'role', not 'role' and 'content'"),
        ('[{"content": 1}, 5]', "message 0 has 'content'"),
    ],
)
def test_what_is_no_conversation(given: str, line: str) -> None:
    with pytest.raises(PromptError, match=line) as caught:
        conversation(given)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_and_none() -> None:
    with pytest.raises(
        PromptError, match=r"of phi refuses the conversation \(only user and assistant\); its roles are x"
    ):
        render(_tokenizer(adds=True, template=TEMPLATE), [{"role": "x", "content": "a"}], name="phi")
    with pytest.raises(PromptError, match="refuses the conversation"):
        render(_tokenizer(adds=True, template="{% for m in"), TALK)
    for tokenizer, lack in ((None, "no tokenizer"), (_tokenizer(adds=True), "no chat template")):
        with pytest.raises(UnsupportedModelError, match=f"phi has {lack}.*leave out --chat"):
            render(tokenizer, TALK, name="phi")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_corpora_of_conversations(tmp_path: Path, kind: str) -> None:
    tokenizer = _tokenizer(adds=True, template=TEMPLATE)
    path = tmp_path / f"talks.{kind}"
    rows = [{"messages": TALK, "text": "c"}, {"messages": [{"role": "user", "content": "cab"}], "text": "c"}]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("ab\n\ncab")
    found = load_tokens(path, tokenizer, seq_len=12, packed=False, chat=True)
    whole = {render(tokenizer, TALK if kind != "txt" else TALK[:1], generation_prompt=False)}
    whole.add(render(tokenizer, [{"role": "user", "content": "cab"}], generation_prompt=False))
    rows_of = [row[mask] for row, mask in zip(found.tokens, found.mask, strict=True)]
    assert {"".join(token_texts(tokenizer, row)) for row in rows_of} == {text + "</s>" for text in whole}
    stream = load_tokens(path, tokenizer, seq_len=4, chat=True).tokens
    assert (stream[:, 0] == 7).all()
    assert not (stream[:, 1:] == 7).any()  # a template's own BOS is not a second one
    if kind == "txt":
        return
    with pytest.raises(TextDataError, match="read conversations with --chat"):
        load_tokens(path, tokenizer, column="messages", seq_len=4)
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        load_tokens(path, _tokenizer(adds=True), seq_len=4, chat=True)


def test_a_corpus_with_another_thing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    tokenizer = _tokenizer(adds=True, template=TEMPLATE)
    for row, line in (
        ({"messages": [{"role": "x", "content": "a"}]}, "talks.jsonl': the chat template"),
        ({"messages": [{"from": "x"}]}, "message 0 has 'from'"),
        ({"messages": [1, 2]}, "neither text nor conversations"),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(TextDataError, match=line):
            load_tokens(path, tokenizer, seq_len=4, chat=True)

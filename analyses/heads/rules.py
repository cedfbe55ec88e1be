"""Disjoint rules that say why a query may attend to a key: each pair belongs to the first rule that takes it *(ours)*.

Rules say what lies at both ends of a weight, from text or patch positions alone, and nothing of the head: the account of
a head is how its mass splits over them. A rule that another contains stands before it ("nearest delimiter" before
"punctuation"), or it would never take a pair.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attlas.interp import HookedModel
from attlas.kernels.attention_tiles import Block

REST = "rest"
TEXT_RULES = {
    "sink": "the first position",
    "self": "the query itself",
    "previous token": "the position before",
    "duplicate token": "an earlier copy of the query's token",
    "induction": "the token after an earlier copy of the query's token",
    "induction, alike": "the token after an earlier token whose embedding is like the query's",
    "same word": "an earlier piece of the query's word",
    "nearest delimiter": "the last end of a sentence or line before the query",
    "punctuation": "punctuation or white space",
    "local window": "a position shortly before",
    REST: "none of these",
}
IMAGE_RULES = {
    "CLS": "the class token",
    "registers": "a register or distillation token",
    "self": "the query itself",
    "high norm": "a patch of unusually large norm in the residual stream",
    "ring 1": "one of the 8 patches around the query",
    "ring 2": "one of the 16 patches around those",
    "ring 3–4": "a patch three or four away",
    REST: "none of these: distant patches, and patches seen from CLS or registers",
}
_ENDS = (".", "!", "?", "。", "！", "？", "\n")


@dataclass(frozen=True)
class Vocabulary:
    """What the text of each token says, bool [d_vocab] each, and embeddings of unit norm [d_vocab, d_model].

    Attributes:
        starts_word: it begins a new word (it holds a space, or no letter or digit).
        punctuation: no letter or digit in it, special tokens left out.
        ends: it ends a sentence or a line.
    """

    starts_word: Tensor | None
    punctuation: Tensor | None
    ends: Tensor | None
    embeddings: Tensor

    @classmethod
    def of(cls, model: HookedModel) -> Vocabulary:
        """Of a model's tokenizer (None: rules that need text take nothing) and embedding."""
        weight = cast(Tensor, model.structure.embed.weight).detach().float()
        weight = weight - weight.mean(0)
        embeddings = torch.nn.functional.normalize(weight, dim=-1)
        if model.tokenizer is None:
            return cls(None, None, None, embeddings)
        texts = model.to_str_tokens(list(range(len(embeddings))))
        special = set(model.tokenizer.all_special_ids)
        words = [any(c.isalnum() for c in text) for text in texts]
        starts = [not word or text[:1].isspace() for text, word in zip(texts, words, strict=True)]
        marks = [
            not word and i not in special and _is_mark(text)
            for i, (text, word) in enumerate(zip(texts, words, strict=True))
        ]
        ends = [mark and text.strip(" ").endswith(_ENDS) for text, mark in zip(texts, marks, strict=True)]
        at_start, mark, end = (torch.tensor(flags, device=weight.device) for flags in (starts, marks, ends))
        return cls(at_start, mark, end, embeddings)


def _is_mark(text: str) -> bool:
    """Punctuation, symbols and white space alone; bytes that are no character are none."""
    return bool(text) and "\\x" not in text and all(c.isspace() or unicodedata.category(c)[0] in "PSZ" for c in text)


class TextRules:
    """Rules of one batch of tokens int64 [B, T]."""

    names = tuple(TEXT_RULES)

    def __init__(self, tokens: Tensor, vocabulary: Vocabulary, *, window: int = 8, alike: float = 0.5) -> None:
        self.tokens, self.vocabulary, self.window, self.alike = tokens, vocabulary, window, alike
        at = torch.arange(tokens.shape[1], device=tokens.device)
        self.positions = at
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        self.marks = nothing if vocabulary.punctuation is None else vocabulary.punctuation[tokens]
        self.words = None if vocabulary.starts_word is None else vocabulary.starts_word[tokens].cumsum(1)
        ends = nothing if vocabulary.ends is None else vocabulary.ends[tokens]
        last = torch.where(ends, at, -1).cummax(1).values
        order = tokens.argsort(dim=1, stable=True)
        ordered = tokens.gather(1, order)
        again = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0), value=False)
        self.occurred = torch.zeros_like(again).scatter_(1, order, again)  # the token stands earlier too
        # of each query the last one strictly before it
        self.last_end = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)

    def codes(self, block: Block) -> Tensor:
        rows, queries, keys = block.rows, block.queries, block.keys
        i, j = self.positions[queries][:, None], self.positions[keys]
        own, there = self.tokens[rows, queries].unsqueeze(-1), self.tokens[rows, keys].unsqueeze(1)
        distance = i - j
        takes = {
            "local window": (distance > 0) & (distance < self.window),
            "punctuation": self.marks[rows, keys].unsqueeze(1),
            "nearest delimiter": self.last_end[rows, queries].unsqueeze(-1) == j,
            "same word": self._same_word(rows, queries, keys),
            "induction, alike": self._follows_alike(rows, queries, keys),
            "induction": self._follows(own, there),
            "duplicate token": own == there,
            "previous token": distance == 1,
            "self": distance == 0,
            "sink": j == 0,
        }
        shape = (own.shape[0], own.shape[1], there.shape[-1])
        found = torch.full(shape, self.names.index(REST), dtype=torch.uint8, device=own.device)
        for name, taken in takes.items():  # from the last rule to the first, so that the first has the last word
            if taken is not None:
                found.masked_fill_(taken.expand(shape), self.names.index(name))
        return found

    def _follows(self, own: Tensor, there: Tensor) -> Tensor:
        """Keys after a copy of the query's token; nothing stands before the first position, where a block's keys begin."""
        before = torch.nn.functional.pad(there[..., :-1], (1, 0), value=-1)
        return own == before

    def _follows_alike(self, rows: slice, queries: slice, keys: slice) -> Tensor:
        own = self.vocabulary.embeddings[self.tokens[rows, queries]]
        there = self.vocabulary.embeddings[self.tokens[rows, keys]]
        alike = (own @ there.mT) >= self.alike
        return torch.nn.functional.pad(alike[..., :-1], (1, 0), value=False)

    def _same_word(self, rows: slice, queries: slice, keys: slice) -> Tensor | None:
        if self.words is None:
            return None
        return self.words[rows, queries].unsqueeze(-1) == self.words[rows, keys].unsqueeze(1)


class ImageRules:
    """Rules of images whose patches lie on one grid, the same for all of them but for patches of high norm.

    Args:
        grid: patches as (rows, columns).
        n_prefix: tokens before the patches: CLS, then registers.
        has_cls: whether the first of those is a class token.
    """

    names = tuple(IMAGE_RULES)

    def __init__(self, grid: tuple[int, int], n_prefix: int, *, device: torch.device | str = "cpu") -> None:
        n_tokens = grid[0] * grid[1] + n_prefix
        at = torch.arange(n_tokens, device=device)
        patch = (at - n_prefix).clamp(min=0)
        row, column = patch // grid[1], patch % grid[1]
        hops = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
        both = (at[:, None] >= n_prefix) & (at >= n_prefix)
        takes = {
            "ring 3–4": both & (hops >= 3) & (hops <= 4),
            "ring 2": both & (hops == 2),
            "ring 1": both & (hops == 1),
            "self": at[:, None] == at,
            "registers": (at > 0) & (at < n_prefix),
            "CLS": (at == 0) & (n_prefix > 0),
        }
        self.all = torch.full((n_tokens, n_tokens), self.names.index(REST), dtype=torch.uint8, device=device)
        for name, taken in takes.items():
            self.all.masked_fill_(taken.expand_as(self.all), self.names.index(name))

    def codes(self, block: Block) -> Tensor:
        return self.all[block.queries, block.keys].unsqueeze(0)

    def with_high_norm(self, codes: Tensor, high: Tensor) -> Tensor:
        """The codes [n, R, S] with keys of high norm (bool [n, S]) as a rule of their own."""
        index = self.names.index("high norm")
        return torch.where(high.unsqueeze(1) & (codes > index), index, codes.expand(len(high), -1, -1)).to(torch.uint8)

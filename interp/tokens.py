"""Tokens as text: each piece as the tokenizer keeps it, not decoded alone (which drops spaces and cuts characters)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # ▁, a space in sentencepiece vocabularies


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text each id stands for.

    Pieces of whole characters join to the text they came from (sentencepiece's leading space included). Bytes that are
    no whole character are written as `\\xe2\\x80`; special tokens by their names; ids that the tokenizer does not have
    (models pad their vocabulary) as `[unused 151700]`.

    Args:
        tokenizer: a Hugging Face tokenizer: byte-level BPE, sentencepiece-like with or without byte fallback, WordPiece.
        ids: token ids.
    """
    ids = [int(i) for i in ids]
    decoders = set(_decoders(tokenizer))
    added = set(tokenizer.added_tokens_decoder)
    n_known = len(tokenizer)
    found = []
    for i in ids:
        piece = tokenizer.convert_ids_to_tokens(i) if 0 <= i < n_known or i in added else None
        if piece is None:
            found.append(f"[unused {i}]")
        elif i in added:
            found.append(str(piece))
        else:
            found.append(_text(piece, decoders))
    return found


def _text(piece: str, decoders: set[str]) -> str:
    if "ByteLevel" in decoders:
        try:
            return bytes(_BYTES[c] for c in piece).decode("utf-8", errors="backslashreplace")
        except KeyError:  # not in the alphabet: a token that was added by hand
            return piece
    if "WordPiece" in decoders:
        return piece.removeprefix("##") if piece.startswith("##") else " " + piece
    byte = _BYTE.fullmatch(piece) if "ByteFallback" in decoders else None
    if byte is not None:
        return bytes.fromhex(byte.group(1)).decode("utf-8", errors="backslashreplace")
    return piece.replace(_SPACE, " ")


def _decoders(tokenizer: Any) -> Iterator[str]:
    """Types of the decoders a tokenizer joins its pieces with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # in Python: byte-level ones keep their alphabet, the others are sentencepiece's
        yield from ("ByteLevel",) if hasattr(tokenizer, "byte_decoder") else ("ByteFallback",)
        return
    if backend.decoder is None:
        return
    state = json.loads(backend.decoder.__getstate__())
    for part in (state, *state.get("decoders", ())):
        yield part["type"]


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE (Radford et al. 2019): printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTES = _byte_alphabet()

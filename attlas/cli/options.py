"""Options that many verbs share: the model, the text, the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

FLAT = tyro.conf.arg(name="")
"""Of a configuration: its fields are options of the verb."""


@dataclass(frozen=True)
class ModelArgs:
    """The model to open."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "gpt2-mini"
    """Embedded or fetched model (`attlas models`), a local Hugging Face folder, or a hub id."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA when there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    device_map: str | None = None
    """In place of --device: auto spreads the layers over all GPUs (by Accelerate)."""
    trust_remote_code: bool = False
    """Run code that lies beside the model's weights; it can do anything. Without this it is never run."""


@dataclass(frozen=True)
class TextArgs:
    """The text to run on."""

    text: str = "embedded:val"
    """embedded:train, embedded:val, a text, JSONL, CSV or Parquet file (also .gz), a dataset folder, a URL, or a data set of
    the hub: org/name:config/split."""
    column: str | None = None
    """Column of the text, or of token ids; without it "text", else "input_ids" or "tokens"."""
    split: str | None = None
    """Split of a dataset folder, such as train; needed where there are several."""
    n_tokens: int = 65_536
    """How many tokens to use."""
    seq_len: int = 256
    """Length of each packed sequence, BOS included; the default is cut to a shorter context window."""
    pad: bool = False
    """Give each document a row of its own, cut at --seq-len and padded behind, in place of packing them end to end."""
    chat: bool = False
    """The text is conversations: JSON lines with "messages" (or texts, one message of the user's each), written by the
    model's chat template."""


@dataclass(frozen=True)
class ChatArgs:
    """Prompts that are conversations."""

    chat: bool = False
    """The prompt is a conversation, written by the model's chat template: text of the user's, a JSON list of messages, or
    @file.json with one."""
    generation_prompt: bool = True
    """With --chat: end where the assistant's answer begins (inside the last message, if that is the assistant's)."""


@dataclass(frozen=True)
class ClassArgs:
    """Classes given as text, for CLIP and SigLIP."""

    zero_shot: bool = False
    """CLIP, SigLIP: judge answers by classes given as text: --classes, else the images' own."""
    classes: str = ""
    """Those classes, such as cat,dog,owl (implies --zero-shot)."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Their prompts; {} is the class, several are averaged."""


@dataclass(frozen=True)
class PlanArgs:
    """Say what it would take, and do nothing."""

    plan: bool = False
    """Open nothing; print what this would take on a GPU (memory, disk, operations, hours), all layers counted."""
    gpu: str = "h100"
    """With --plan: the GPU, such as h100, h200, a100, a100-40, l40s or rtx4090."""
    gpu_memory: float | None = None
    """With --plan: GB of its memory, where they are not the named one's."""


@dataclass(frozen=True)
class OutArgs:
    """Where results go."""

    workspace: Annotated[Path, tyro.conf.arg(aliases=["-w"])] = Path("workspace")
    """Workspace folder; made when it is not there."""
    json: bool = False
    """Print the result as JSON on stdout (progress stays on stderr)."""

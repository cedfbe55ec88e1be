"""Everything a training run depends on: Python argument, command-line flags and record in the manifest at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attlas.data.remote import Folder
from attlas.errors import ConfigError
from attlas.saes.config import SAEConfig
from attlas.saes.training.rates import default_learning_rate

if TYPE_CHECKING:
    from attlas.saes.base import SAE


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how. The defaults suit `gpt2-mini` on two CPU cores."""

    model: str = "gpt2-mini"
    """Embedded or fetched model (`attlas models`), a local Hugging Face folder, or a hub id."""
    hooks: tuple[str, ...] = ("blocks.2.attn.hook_z",)
    """Hook names or globs ('blocks.*.attn.hook_z'); each hook gets its own SAE from the same forward pass."""
    arch: str = "topk"
    """Architecture, such as topk, batchtopk or jumprelu (docs/saes.md has all, with their papers)."""
    d_sae: int | None = None
    """Number of features; None takes expansion × width of the hook."""
    expansion: int = 8
    """Features per activation dimension, where d_sae is not given."""
    k: int = 16
    """Active features a token (TopK families)."""
    sparsity: float | None = None
    """λ of standard, gated and jumprelu; None takes the architecture's own."""
    text: str = "embedded:train"
    """embedded:train, embedded:val, a text, JSONL, CSV or Parquet file (also .gz), a dataset folder, a URL, or a data set of
    the hub: org/name:config/split."""
    column: str | None = None
    """Column of the text, or of token ids; without it "text", else "input_ids" or "tokens"."""
    split: str | None = None
    """Split of a dataset folder, such as train; without it the only one, or train."""
    images: str | None = None
    """For vision models: embedded:glyphs, sklearn:samples, a folder or .npz; None picks by the model's channels."""
    n_tokens: int = 300_000
    """Activations to train on, in all; the data is gone through again when it has fewer."""
    seq_len: int = 256
    """Length of each packed sequence, BOS included; cut to the model's context window."""
    pad: bool = False
    """Give each document a row of its own, cut at seq_len and padded behind, in place of packing them end to end."""
    chat: bool = False
    """Documents are conversations (a column "messages"), or one message each; written by the model's chat template."""
    skip_positions: int | None = None
    """Leading positions left out of training; None leaves out the BOS of text and nothing of images."""
    exclude_tokens: tuple[str, ...] = ()
    """Tokens whose positions are left out of training: bos, eos, pad, sep, token strings or ids."""
    seed: int = 0
    """Seed of data order, mixing and initial weights."""
    batch_size: int = 1024
    """Activations a step."""
    lr: float | None = None
    """Peak learning rate; None takes the law of attlas.saes.training.rates: 8e-3 for the TopK families, 9e-3
    for jumprelu, 1.4e-2 for gated and 2.4e-2 for standard at 300 steps and width 192, falling with the cube root of the steps
    (standard: the sixth) and the square root of the width."""
    lr_warmup: float = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    lr_decay: float = 0.5
    """Share of the steps, at the end, over which it falls to 0."""
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the fall; cosine falls from the end of the warm-up on."""
    sparsity_warmup: float = 0.2
    """Share of the steps over which λ rises from 0 (standard, gated, jumprelu)."""
    normalise: bool = True
    """Scale activations to E|x| = sqrt(d_in) while training; folded back into the weights at the end."""
    active_subspace: bool = True
    """Start decoder rows inside the principal subspace of the activations (fewer dead features)."""
    subspace_variance: float = 0.99
    """Share of the activations' variance which that subspace holds."""
    encoder_scale: float = 0.5
    """Norm of the encoder's columns at the start (decoder rows have norm 1)."""
    aux_coefficient: float = 1.0
    """Weight of what revives dead features: AuxK (TopK families, jumprelu), a pre-activation loss (gated); 0 for none."""
    k_aux: int | None = None
    """Dead features that may explain a token's error; None is d_in/2."""
    dead_after: int | None = None
    """Tokens without firing after which a feature counts as dead; None takes n_tokens/50, but
    at least 10 batches and at most 10M."""
    bandwidth: float = 0.5
    """Width of the straight-through window (jumprelu)."""
    widths: tuple[int, ...] = ()
    """Nested dictionary sizes (matryoshka); empty takes d_sae/16, /8, /4, /2 and d_sae."""
    grad_clip: float | None = None
    """Largest gradient norm of an SAE; None takes the architecture's own (1 for standard, gated and jumprelu, else no
    clipping), 0 never clips."""
    buffer_tokens: int = 65_536
    """Activations in the mixing buffer; more mixes better and takes more memory."""
    capture_batch: int = 32
    """Sequences or images in one forward pass of the model."""
    capture_ahead: int | None = None
    """Chunks of activations (capture_batch sequences each) made by a thread, on a GPU on a stream of their own, while the
    autoencoders train; None takes 2 on a GPU and 0 on a CPU. The result is the same."""
    store: Folder | None = None
    """Folder of an activation store, or its URL (s3://…): written first when it is not there; else what it was captured with
    (model, hooks, text, positions, type) is taken over."""
    activation_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of activations in the buffer and the store; weights and sums are float32 in any case."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA when there is one. Of the autoencoders, and of the model unless model_device
    names another."""
    model_device: str | None = None
    """Device of the model, where it is not that of the autoencoders."""
    dtype: str = "float32"
    """Type of the model's weights."""
    fused: bool = True
    """One fused kernel step in place of autograd and Adam: on a GPU every architecture, on the CPU topk, batchtopk, matryoshka
    and jumprelu; the results differ by rounding only."""
    lazy_adam: bool = False
    """With the fused step: leave rows alone that Adam would not move. Same result; faster where most features are rare."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of products in training: float32, tf32, or bfloat16 (features are chosen, and products made, from rounded copies; the
    chosen values of the TopK families, weights, sums and Adam are float32). auto is bfloat16 on a GPU that has it, else
    float32. On a CPU bfloat16 is emulated, for checks; it is slower there. docs/performance.md tells what it changes."""
    cuda_graph: bool = True
    """On a GPU: replay the fused step as one CUDA graph; without, its kernels are launched one by one."""
    log_every: int = 10
    """Steps between rows of the training curve."""
    checkpoint_every: int = 500
    """Steps between checkpoints, where a folder is given; 0 for none."""

    def __post_init__(self) -> None:
        if isinstance(self.store, str) and "://" not in self.store:
            object.__setattr__(self, "store", Path(self.store))
        if not self.hooks:
            raise ConfigError("no hook given; name one, such as blocks.2.attn.hook_z")
        least = {"expansion": 1, "n_tokens": 1, "batch_size": 1, "seq_len": 2, "capture_batch": 1, "log_every": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {low}")
        if self.capture_ahead is not None and self.capture_ahead < 0:
            raise ConfigError(f"capture_ahead={self.capture_ahead} must be at least 0; 0 captures when it is asked for")
        if self.d_sae is not None and self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae} must be at least 1")
        if self.lr is not None and self.lr <= 0:
            raise ConfigError(f"lr={self.lr} must be above 0")
        if self.grad_clip is not None and self.grad_clip < 0:
            raise ConfigError(f"grad_clip={self.grad_clip} must be at least 0; 0 never clips")
        if self.skip_positions is not None and not 0 <= self.skip_positions < self.seq_len:
            raise ConfigError(
                f"skip_positions={self.skip_positions} must be from 0 to seq_len − 1 = {self.seq_len - 1}"
            )
        if self.precision not in ("auto", "float32", "tf32", "bfloat16"):
            raise ConfigError(f"precision={self.precision} is unknown; use auto, float32, tf32 or bfloat16")
        if self.precision == "bfloat16" and not self.fused:
            raise ConfigError("precision=bfloat16 needs the fused step; leave fused on, or use float32 or tf32")
        for name in ("lr_warmup", "lr_decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is a share of the steps; give 0 to 1")
        if not 0 < self.subspace_variance <= 1:
            raise ConfigError(f"subspace_variance={self.subspace_variance} must be above 0 and at most 1")
        if self.buffer_tokens < 2 * self.batch_size:
            raise ConfigError(
                f"buffer_tokens={self.buffer_tokens} must be at least twice batch_size={self.batch_size} to mix"
            )

    @property
    def n_steps(self) -> int:
        """Steps of the run: n_tokens / batch_size, rounded up."""
        return -(-self.n_tokens // self.batch_size)

    @property
    def dead_tokens(self) -> int:
        """Tokens after which a silent feature counts as dead."""
        if self.dead_after is not None:
            return self.dead_after
        return min(10_000_000, max(10 * self.batch_size, self.n_tokens // 50))

    def learning_rate(self, d_in: int) -> float:
        """The peak learning rate on a hook of width d_in: `lr`, or what the architecture, size and length of run ask for."""
        if self.lr is not None:
            return self.lr
        return default_learning_rate(_architecture(self.arch), d_in, self.sae_config(d_in).d_sae, self.n_steps)

    @property
    def clip(self) -> float | None:
        """The largest gradient norm, or None for no clipping."""
        return _architecture(self.arch).default_clip if self.grad_clip is None else self.grad_clip or None

    def lr_factor(self, step: int) -> float:
        """The learning rate at a step as a share of its peak."""
        from math import cos, pi

        warm = max(1, round(self.lr_warmup * self.n_steps))
        if step < warm:
            return (step + 1) / warm
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + cos(pi * (step - warm) / max(1, self.n_steps - warm)))
        decay = round(self.lr_decay * self.n_steps)
        return min(1.0, (self.n_steps - step) / decay) if decay else 1.0

    def penalty_scale(self, step: int) -> float:
        """λ at a step as a share of its full value."""
        warm = round(self.sparsity_warmup * self.n_steps)
        return min(1.0, (step + 1) / warm) if warm else 1.0

    def sae_config(self, d_in: int, **provenance: str | int | tuple[str, ...] | None) -> SAEConfig:
        """The configuration of an SAE on a hook of width d_in.

        Raises:
            ConfigError: k exceeds the number of features, or the architecture is unknown.
        """
        d_sae = self.d_sae if self.d_sae is not None else self.expansion * d_in
        architecture = _architecture(self.arch)
        sparsity = self.sparsity if self.sparsity is not None else architecture.default_sparsity
        return SAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            arch=self.arch,
            k=self.k if architecture.chooses_k else min(self.k, d_sae),
            sparsity=sparsity,
            aux_coefficient=self.aux_coefficient,
            k_aux=self.k_aux,
            bandwidth=self.bandwidth,
            widths=self.widths if architecture.nested else (),
            **provenance,  # type: ignore[arg-type]
        )


def _architecture(arch: str) -> type[SAE]:
    from attlas.saes.architectures import architecture  # torch, which `attlas train --help` does without

    return architecture(arch)

"""Train a Lorsa on an attention layer's input and output: whole sequences, in an order drawn anew for every epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from attlas.data.progress import Track, no_track, terminal_track
from attlas.data.result import Result
from attlas.data.runs.record import Ref
from attlas.errors import NonFiniteError, UnsupportedModelError
from attlas.interp import AnyModel, as_hooked, load_model
from attlas.interp.load import find_device
from attlas.saes.identity import identity
from attlas.saes.inputs import load_inputs
from attlas.saes.lorsa.checkpoint import restore, save_state
from attlas.saes.lorsa.config import LorsaConfig
from attlas.saes.lorsa.files import save_lorsa
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.lorsa.rotary import of_model
from attlas.saes.lorsa.start import Sample, start_from_layer, start_random
from attlas.saes.lorsa.training_config import LorsaTrainConfig
from attlas.saes.plots import training_figure
from attlas.saes.positions import Positions, positions_for
from attlas.saes.training.clock import Clock
from attlas.saes.training.history import TRAINING, History, curve_row
from attlas.saes.training.trainer import ADAM_EPS

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects as go

    from attlas.data.dataset import Dataset
    from attlas.interp import HookedModel

SAMPLE_TOKENS = 8_192  # for scales, subspaces and means
EXACT = ("softcap", "sinks", "qk_norm", "post_norm")
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class TrainedLorsa(Result):
    """A trained Lorsa and its curve; in a workspace a run of kind "lorsa", with the Lorsa in `lorsa/`.

    Attributes:
        lorsa: in evaluation mode, scales folded in.
        config: of the training.
        model_ref, data_ref: what it was trained on.
        rows: of its curve (schema `TRAINING`; squared error is of the layer's output).
        rate: peak learning rate.
    """

    kind: ClassVar[str] = "lorsa"

    lorsa: Lorsa
    config: LorsaTrainConfig
    model_ref: Ref
    data_ref: Ref
    rows: tuple[dict[str, Any], ...]
    rate: float

    def tables(self) -> dict[str, pa.Table]:
        """The table training, a row a logged step."""
        return {"training": TRAINING.table(self.rows)}

    def summary(self) -> dict[str, Any]:
        """The last row of the curve, with the Lorsa's sizes."""
        kept = ("loss", "l0", "explained_variance", "dead_fraction", "tokens")
        return {**self.lorsa.metadata(), **{name: self.rows[-1][name] for name in kept}, "learning_rate": self.rate}

    def plot(self) -> go.Figure:
        """Explained variance, L0, dead fraction and loss against tokens."""
        return training_figure(list(self.rows))

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model_ref, self.data_ref

    def _recorded_config(self) -> dict[str, Any]:
        return self.config.record()

    @property
    def _seed(self) -> int | None:
        return self.config.train.seed

    def _files(self) -> dict[str, Callable[[Path], Any]]:
        return {"lorsa": lambda path: save_lorsa(self.lorsa, path)}


def train_lorsa(
    config: LorsaTrainConfig | None = None,
    *,
    model: AnyModel | None = None,
    data: Dataset | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    track: Track | None = None,
) -> TrainedLorsa:
    """Train a Lorsa on one layer of a causal language model.

    Args:
        config: what to train; by default on layer 2 of gpt2-mini.
        model: in place of config.train.model.
        data: tokens, in place of config.train.text.
        folder: where to keep the live curve (`training.jsonl`) and checkpoints; None keeps neither.
        resume: go on from the folder's checkpoint; the finished Lorsa equals that of an uninterrupted run.
        track: what shows how far it is; by default a bar where stderr is a terminal.

    Raises:
        UnsupportedModelError: a vision model, or attention that a Lorsa cannot express (soft-capped scores, sinks, a sliding
            window within the sequence, norms of queries and keys).
        LayerRangeError: there is no such layer.
        ConfigError: sizes do not fit together.
        NonFiniteError: activations or a loss are NaN or infinite.

    Example:
        >>> from attlas.saes import LorsaTrainConfig, TrainConfig, train_lorsa
        >>> small = TrainConfig(k=4, d_sae=48, n_tokens=96, batch_size=48)
        >>> trained = train_lorsa(LorsaTrainConfig(small, layer=3), model=model, data=text)
        >>> trained.lorsa.W_O.shape  # [features, d_model]
        torch.Size([48, 192])
    """
    config = config or LorsaTrainConfig()
    track = track or terminal_track()
    train = config.train
    hooked = as_hooked(load_model(train.model, train.device, train.dtype) if model is None else model)
    require_attention(hooked, config.layer)
    tokens = load_inputs(hooked, train) if data is None else data
    layer = LayerData(hooked, config.layer, tokens, train.seed, train.skip_positions, train.exclude_tokens)
    layer.require_window()
    lorsa, scales = _begin(config, hooked, layer, tokens.ref)
    return _run(config, hooked, layer, lorsa, scales, Path(folder) if folder is not None else None, resume, track)


def require_attention(model: HookedModel, layer: int) -> None:
    """Raise where a Lorsa cannot stand for the layer.

    Raises:
        UnsupportedModelError, LayerRangeError: as `train_lorsa`.
    """
    if model.cfg.family == "vit" or not model.cfg.causal:
        raise UnsupportedModelError(
            f"{model.name} ({model.cfg.family}) attends in both directions; a Lorsa stands for causal attention of text "
            "(use --arch topk on hook_z)"
        )
    parts = model.layer(layer)
    model.require_plain("a Lorsa", *EXACT)
    if parts.ln1 is None:
        raise UnsupportedModelError(f"{model.name} has no norm in front of attention, whose output a Lorsa reads")


class LayerData:
    """A layer's inputs and outputs on whole sequences.

    Args:
        skip, exclude: which positions count, None and () for the default.

    Attributes:
        length: positions of a sequence.
    """

    def __init__(
        self, model: HookedModel, layer: int, data: Dataset, seed: int, skip: int | None, exclude: tuple[str, ...]
    ) -> None:
        self.model, self.layer, self.data, self.seed = model, layer, data, seed
        self.hook_in, self.hook_out = hooks_of(layer)
        self.positions: Positions = positions_for(model, skip, exclude)
        self.positions.require_some(data)
        self.length = int(data.tensor.shape[1])
        self._order: tuple[int, Tensor] | None = None

    def require_window(self) -> None:
        """Raises UnsupportedModelError where the layer sees less than the whole sequence."""
        window = self.model.layer(self.layer).rule.sliding_window
        if window is not None and window < self.length:
            raise UnsupportedModelError(
                f"layer {self.layer} of {self.model.name} sees {window} tokens and the sequences have {self.length}; a "
                f"Lorsa sees all: use seq_len ≤ {window}"
            )

    def picked(self, first: int, n: int) -> list[int]:
        """Sequences first … first + n − 1 of the training, each epoch in an order of its own."""
        found = []
        for at in range(first, first + n):
            epoch, place = divmod(at, len(self.data))
            if self._order is None or self._order[0] != epoch:
                draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                self._order = (epoch, torch.randperm(len(self.data), generator=draw))
            found.append(int(self._order[1][place]))
        return found

    def batch(self, rows: list[int], *more: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Input and output [B, T, D], the positions that count, and the cache (with `more` hooks)."""
        tokens = self.data.tensor[rows].to(self.model.device)
        text = None if self.data.mask is None else self.data.mask[rows]
        keep = self.positions.mask(tokens, text=text)
        with torch.no_grad():
            cache = self.model.capture(tokens, [self.hook_in, self.hook_out, *more])
        for name in (self.hook_in, self.hook_out):
            if not bool(torch.isfinite(cache[name]).all()):
                raise NonFiniteError(
                    f"'{name}' of '{self.model.name}' holds NaN or infinity; load the model in float32"
                )
        return cache[self.hook_in].float(), cache[self.hook_out].float(), keep, dict(cache)


def hooks_of(layer: int) -> tuple[str, str]:
    """Where a Lorsa of a layer reads, and what it stands for."""
    return f"blocks.{layer}.ln1.hook_normalized", f"blocks.{layer}.hook_attn_out"


def _begin(
    config: LorsaTrainConfig, model: HookedModel, layer: LayerData, data: Ref
) -> tuple[Lorsa, tuple[float, float]]:
    """A new Lorsa, started from a first look at the layer, and the scales of its inputs and outputs."""
    train, shape = config.train, model.cfg
    parts = model.layer(config.layer)
    d_qk = config.d_qk_head or shape.d_head
    cfg = LorsaConfig(
        d_model=shape.d_model,
        d_sae=train.d_sae if train.d_sae is not None else train.expansion * shape.d_model,
        n_qk_heads=config.n_qk_heads or shape.n_heads,
        d_qk_head=d_qk,
        n_ctx=layer.length,
        k=train.k,
        attn_scale=1 / parts.scale if d_qk == shape.d_head else None,
        rotary=of_model(model),
        hook_in=layer.hook_in,
        hook_out=layer.hook_out,
        model_name=model.name,
        model_hash=model.weight_hash,
        data_name=data.name,
        data_hash=data.hash,
        skip_positions=layer.positions.skip,
        exclude_tokens=layer.positions.names,
    )
    z, pattern = (f"blocks.{config.layer}.attn.{name}" for name in ("hook_z", "hook_pattern"))
    rows = layer.picked(0, min(len(layer.data), max(1, SAMPLE_TOKENS // layer.length)))
    x, y, keep, cache = layer.batch(rows, z)
    attention = layer.batch(rows[:1], pattern)[3][pattern][0]
    sample = Sample(x, y, cache[z], attention, keep)
    lorsa, generator = Lorsa(cfg).to(find_device(train.device)), torch.Generator().manual_seed(train.seed)
    if config.qk_start == "layer":
        start_from_layer(lorsa, model, config.layer, sample, generator, train.encoder_scale)
    else:
        start_random(lorsa, sample, generator)
    return lorsa, sample.scales


def _run(
    config: LorsaTrainConfig,
    model: HookedModel,
    layer: LayerData,
    lorsa: Lorsa,
    scales: tuple[float, float],
    folder: Path | None,
    resume: bool,
    track: Track = no_track,
) -> TrainedLorsa:
    """The loop. Nothing is carried over between steps but weights, Adam's state and how long features have been silent."""
    train = config.train
    per_step = max(1, train.batch_size // layer.length)
    tokens_a_step = per_step * layer.length
    n_steps = -(-train.n_tokens // tokens_a_step)
    rate = config.learning_rate(n_steps)
    optimizer = torch.optim.Adam(lorsa.parameters(), lr=rate, betas=(0.9, 0.999), eps=ADAM_EPS)
    silent_F = torch.zeros(lorsa.cfg.d_sae, dtype=torch.int64, device=lorsa.W_O.device)
    record = config.record() | identity(model, layer.data.ref) if folder is not None else {}
    start, rows = restore(folder, lorsa, optimizer, silent_F, record) if folder is not None and resume else (0, [])
    history, clock = History(folder, rows), Clock()
    since, since_step = time.perf_counter(), start

    for step in track(range(start, n_steps), "training", n_steps - start):
        with clock.on("model"):
            x, y, keep, _ = layer.batch(layer.picked(step * per_step, per_step))
        with clock.on("sae"):
            x, y = (t.to(lorsa.W_O.device) * s for t, s in zip((x, y), scales, strict=True))
            keep, dead_F = keep.to(x.device), silent_F >= train.dead_tokens
            terms = lorsa.loss(x, y, keep, dead_F, aux_coefficient=train.aux_coefficient, k_aux=train.k_aux)
            if not bool(torch.isfinite(terms.total)):
                raise NonFiniteError(
                    f"the loss became {float(terms.total.detach())} at step {step + 1}; lower the learning rate "
                    f"(it was {rate:.2g})"
                )
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            if train.grad_clip:
                torch.nn.utils.clip_grad_norm_(lorsa.parameters(), train.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = rate * config.lr_factor(step, n_steps)
            optimizer.step()
            silent_F += int(keep.sum())
            silent_F.masked_fill_(terms.fired_F > 0, 0)
        if (step + 1) % train.log_every == 0 or step + 1 == n_steps:
            now = time.perf_counter()
            row = {
                "sae": layer.hook_out,
                "hook": layer.hook_out,
                **curve_row(
                    terms, y[keep], dead_F, step + 1, (step + 1) * tokens_a_step, rate * config.lr_factor(step, n_steps)
                ),
                "tokens_per_second": (step + 1 - since_step) * tokens_a_step / max(now - since, 1e-9),
                **clock.shares(),
            }
            history.add(row)
            since, since_step = now, step + 1
            clock.restart()
            track.news(f"{row['tokens_per_second']:,.0f} tokens/s, EV {row['explained_variance']:.3f}", [row])
        if folder is not None and train.checkpoint_every > 0 and (step + 1) % train.checkpoint_every == 0:
            save_state(folder, step + 1, lorsa, optimizer, silent_F, record, history.rows)

    lorsa.fold_scales(*scales)
    return TrainedLorsa(
        lorsa.requires_grad_(False).eval(), config, model.ref, layer.data.ref, tuple(history.rows), rate
    )

"""EntropyTracker: attention entropy per head in a training loop of your own, without T×T (Zhai et al. 2023, 2303.06296).

    with attlas.EntropyTracker(model, every=50, out="entropy.parquet") as tracker:
        for step, batch in enumerate(loader):
            loss = model(**batch).loss
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            tracker.step(loss=loss)
            if tracker.should_stop:
                break

A check reads the inputs of each attention module in one forward pass, projects a few sequences to q and k again, and
streams them through `attlas.kernels.attention_stats`. Between checks no hook is in place. Nothing here raises into the
loop: a failure is logged once and that layer's row stays empty.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from attlas.analyses.stability.alerts import Alert, AlertConfig, AlertMonitor
from attlas.analyses.stability.bound import entropy_lower_bound, logit_bound, qk_norms, spectral_norm
from attlas.analyses.stability.layer import Adapter, AttentionLayer, HeadWeights, Reading
from attlas.analyses.stability.layers import attention_layers, unwrap
from attlas.analyses.stability.log import TRACKER, TRACKER_ALERTS, TrackerLog
from attlas.analyses.stability.reparam import hold_power_iteration
from attlas.analyses.stability.sums import WIDTH, all_reduce, means_of, sums_of
from attlas.data.result import Result
from attlas.errors import ConfigError
from attlas.kernels import attention_stats

log = logging.getLogger("attlas.tracker")
_tracked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class TrackerConfig:
    """How often and how much to measure.

    Attributes:
        every: steps between checks; step 0 is one.
        n_sequences: sequences of the batch that a check looks at (the first ones).
        weights: also spectral norms and the weight-based bound.
        training_only: ignore forward passes in eval mode.
        alerts: thresholds of the alerts.
    """

    every: int = 50
    n_sequences: int = 4
    weights: bool = True
    training_only: bool = True
    alerts: AlertConfig = field(default_factory=AlertConfig)

    def __post_init__(self) -> None:
        if self.every < 1 or self.n_sequences < 1:
            raise ConfigError(f"every {self.every} and n_sequences {self.n_sequences} must be 1 or more")


class EntropyTracker(Result):
    """Watch the attention entropy of a model while it trains.

    Args:
        model: what the loop calls: a model of a supported family, a module with nn.MultiheadAttention in it, or any with
            an adapter; compiled and DistributedDataParallel-wrapped ones too (attach after wrapping).
        config: a TrackerConfig; keywords such as every=100 replace its fields.
        adapter: module → AttentionLayer objects, for attention modules of your own.
        optimizer: when given, each of its steps counts, and `step()` need not be called.
        out: Parquet file to keep up to date.
        loggers: TensorBoard SummaryWriters, Weights & Biases runs, or functions (values: dict, step: int).
        on_alert: called with each Alert that begins or ends.
        reduce: add up over ranks; None: when the model is DistributedDataParallel. All ranks must then track.

    Attributes:
        should_stop: True once an alert has asked for it.
        alerts: every Alert so far.

    Raises:
        ConfigError: bad settings, or the model has a tracker already.
        UnsupportedModelError: no attention that can be read.

    Example:
        >>> import copy
        >>> from attlas.analyses.stability import EntropyTracker
        >>> training = copy.deepcopy(model.hf).train()
        >>> with EntropyTracker(training, every=1) as tracker:
        ...     loss = training(input_ids=text.tokens, labels=text.tokens).loss
        ...     tracker.step(loss=loss)
        >>> tracker.table().num_rows  # layers × heads, each check
        24
    """

    kind: ClassVar[str] = "tracker"

    def __init__(
        self,
        model: nn.Module,
        config: TrackerConfig | None = None,
        *,
        adapter: Adapter | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        out: str | Path | None = None,
        loggers: Sequence[Any] = (),
        on_alert: Callable[[Alert], None] | None = None,
        reduce: bool | None = None,
        **settings: Any,
    ) -> None:
        try:
            self.config = TrackerConfig(**{**(vars(config) if config else {}), **settings})
        except TypeError as error:
            raise ConfigError(f"EntropyTracker: {error}; settings are {', '.join(vars(TrackerConfig()))}") from None
        self.model = model
        self._inner = unwrap(model)
        if self._inner in _tracked:
            raise ConfigError(f"{type(self._inner).__name__} has an EntropyTracker already; close() that one first")
        self.attention_layers = attention_layers(model, adapter)
        self.n_heads = max(attention.n_heads for attention in self.attention_layers)
        self.monitor = AlertMonitor((len(self.attention_layers), self.n_heads), self.config.alerts)
        self.alerts: list[Alert] = []
        self.should_stop = False
        self.steps = 0
        self._log = TrackerLog(self.attention_layers, out, loggers)
        self._on_alert = on_alert
        self._distributed = _is_ddp(model) if reduce is None else reduce
        self._sums: list[Tensor | None] = [None] * len(self.attention_layers)
        self._norms: dict[int, dict[str, np.ndarray | float]] = {}
        self._vectors: dict[tuple[int, str], Tensor] = {}
        self._handles: list[Any] = []
        self._warned: set[str] = set()
        self._compiled = _is_compiled(model)
        self._optimizer_hook = None
        if optimizer is not None:
            self._optimizer_hook = optimizer.register_step_post_hook(lambda *_: self.step())
        _tracked.add(self._inner)
        self._arm()

    # -- the loop's side -------------------------------------------------------------------------------------------

    def __enter__(self) -> EntropyTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Call once after each optimizer step. `loss` is recorded beside a check (and read from the device only then)."""
        armed = self.steps % self.config.every == 0
        with self._never_raise("step"):
            if armed:
                self._finish(loss)
        self.steps += 1
        if self.steps % self.config.every == 0:
            with self._never_raise("arm"):
                self._arm()

    def skip_to(self, step: int) -> None:
        """Go on counting from `step` (a resumed training); the next forward pass is checked when it is due."""
        self.steps = step
        self._disarm()
        if step % self.config.every == 0:
            self._arm()

    def close(self) -> None:
        """Take everything off the model, write the rest of the table. Safe to call again."""
        self._disarm()
        if self._optimizer_hook is not None:
            self._optimizer_hook.remove()
            self._optimizer_hook = None
        _tracked.discard(self._inner)
        with self._never_raise("write"):
            self._log.close()

    def table(self) -> pa.Table:
        """Every check so far: table tracker, one row a step, layer and head."""
        return self._log.table()

    def tables(self) -> dict[str, pa.Table]:
        alerts = TRACKER_ALERTS.table([vars(alert) for alert in self.alerts])
        return {TRACKER.name: self.table(), TRACKER_ALERTS.name: alerts}

    def plot(self, metric: str = "entropy") -> Any:
        """One line a head over steps, coloured by layer."""
        return self._log.plot(metric)

    def summary(self) -> dict[str, Any]:
        """Headline numbers of the last check, and how many alerts began."""
        return {**self._log.summary(), "steps": self.steps, "alerts": sum(a.began for a in self.alerts)}

    # -- arming ----------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Put the hooks in place for the next forward pass."""
        self._disarm()
        self._sums = [None] * len(self.attention_layers)
        if self._compiled:
            self._handles.append(_before_forward(self.model, self._probe))
        else:
            self._watch()

    def _watch(self) -> None:
        for index, attention in enumerate(self.attention_layers):
            self._handles.append(
                attention.module.register_forward_pre_hook(self._hook(index, attention), with_kwargs=True)
            )

    def _disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, index: int, attention: AttentionLayer) -> Callable[..., None]:
        @torch.compiler.disable
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._sums[index] is not None or (self.config.training_only and not self._counts):
                return  # the first forward pass of a step; recomputation by checkpointing comes later
            with self._never_raise(attention.name), torch.no_grad(), hold_power_iteration():
                reading = attention.read(module, args, kwargs, self.config.n_sequences)
                if reading is not None:
                    self._sums[index] = self._measure(index, attention, reading)

        return hook

    _probing = False

    @property
    def _counts(self) -> bool:
        return self._probing or self._inner.training

    def _probe(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Of a compiled model: hooks inside are not called, so run it once more as it is, in eval mode, without grad."""
        if self._probing or (self.config.training_only and not self._inner.training):
            return
        if any(s is not None for s in self._sums):
            return
        modes = [(m, m.training) for m in self._inner.modules()]
        kept, self._handles = self._handles, []
        self._probing = True
        try:
            with self._never_raise("probe"), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self._inner.eval()
                self._watch()
                self._inner(*args, **kwargs)
        finally:
            self._disarm()
            self._handles, self._probing = kept, False
            for module, mode in modes:
                module.training = mode

    # -- measuring -------------------------------------------------------------------------------------------------

    def _measure(self, index: int, attention: AttentionLayer, reading: Reading) -> Tensor:
        """Sums of one layer, [H, WIDTH]. Logits and sums are float32 whatever the autocast."""
        with torch.autocast(reading.q.device.type, enabled=False):
            stats = attention_stats(reading.q, reading.k, reading.rule, mask=reading.whole_mask, window=1)
            bound = None
            weights = attention.weights() if attention.weights is not None and self.config.weights else None
            if weights is not None:
                norms = self._weight_norms(index, weights, attention.rotary)
                if reading.inputs is not None:
                    s = logit_bound(norms, reading.inputs, reading.rule.scaled(reading.q.shape[-1]), reading.real)
                    bound = entropy_lower_bound(s[..., None], stats.n_keys)
            return sums_of(stats, bound)

    def _weight_norms(self, index: int, weights: HeadWeights, rotary: bool) -> Tensor:
        qk = qk_norms(weights.w_q, weights.w_k, weights.b_q, weights.b_k, rotary)
        values: dict[str, Any] = {"sigma_qk": qk}
        for name in ("w_q", "w_k", "w_v", "w_o"):
            weight = getattr(weights, name)
            sigma = None
            if weight is not None:
                flat = weight.transpose(0, 1).flatten(1) if weight.ndim == 3 else weight
                known = self._vectors.get((index, name))
                if bool(torch.isfinite(flat.sum())):
                    sigma, self._vectors[index, name] = spectral_norm(
                        flat, known, n_iterations=20 if known is None else 2
                    )
            values["sigma_" + name[-1]] = sigma
        self._norms[index] = values
        return qk

    def _finish(self, loss: Tensor | float | None) -> None:
        """Turn the sums of an armed step into rows, loggers' values and alerts."""
        self._disarm()
        shape = (len(self.attention_layers), self.n_heads, WIDTH)
        sums = torch.zeros(shape, dtype=torch.float64)
        for index, found in enumerate(self._sums):
            if found is not None:
                sums[index, : found.shape[0]] = found.cpu()
        if self._distributed:
            device = next(self._inner.parameters()).device
            sums = all_reduce(sums, device)
        if not bool((sums[..., 0] + sums[..., 2] > 0).any()):
            self._warn("empty", "no attention was seen in this step; attach the tracker after torch.compile, and "
                       "train with model.train() (or training_only=False)")  # fmt: skip
            return
        columns = means_of(sums)
        norms = {i: {k: _plain(v) for k, v in n.items()} for i, n in self._norms.items()}
        self._log.add(self.steps, columns, norms, None if loss is None else float(torch.as_tensor(loss).detach()))
        for alert in self.monitor.update(self.steps, columns["normalized"], columns["nonfinite"]):
            self._raise_alert(alert)

    def _raise_alert(self, alert: Alert) -> None:
        self.alerts.append(alert)
        log.warning("%s (%s)", alert, self.attention_layers[alert.layer].name)
        if alert.began and alert.kind != "uniform" and self.config.alerts.stop:
            self.should_stop = True
        if self._on_alert is not None:
            with self._never_raise("on_alert"):
                self._on_alert(alert)

    # -- safety ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _never_raise(self, where: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the user's training is worth more than a row of ours
            self._warn(where, f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("EntropyTracker, step %d: %s (said once)", self.steps, message)


def _plain(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _is_ddp(model: nn.Module) -> bool:
    import torch.distributed as dist

    names = {type(m).__name__ for m in (model, getattr(model, "_orig_mod", model))}
    return "DistributedDataParallel" in names and dist.is_available() and dist.is_initialized()


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


class _CallPatch:
    """Undo of a wrapped `_compiled_call_impl` (a module compiled in place traces its own hooks, so none can be put there)."""

    def __init__(self, model: nn.Module, before: Callable[..., None]) -> None:
        self.model = model
        self.original: Any = model._compiled_call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            before(args, kwargs)
            return self.original(*args, **kwargs)

        model._compiled_call_impl = call

    def remove(self) -> None:
        self.model._compiled_call_impl = self.original


def _before_forward(model: nn.Module, before: Callable[[tuple[Any, ...], Mapping[str, Any]], None]) -> Any:
    """Call `before(args, kwargs)` in front of each forward pass of what the loop calls; outside the compiled graph."""
    if model._compiled_call_impl is not None:
        return _CallPatch(model, before)

    @torch.compiler.disable
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before(args, kwargs)

    return model.register_forward_pre_hook(hook, with_kwargs=True)

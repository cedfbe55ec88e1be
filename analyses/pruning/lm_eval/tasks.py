"""Quality by lm-evaluation-harness tasks (Gao et al., EleutherAI): a model before and after pruning, on the same documents.

Needs the extra: pip install 'attlas[lm-eval]'. Tasks are lm-eval's own (their data comes from the hub or its cache), those
of a folder of task definitions, and two embedded ones that need no data (see lm_eval_prompts).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attlas.analyses.pruning.lm_eval.prompts import EMBEDDED, write_prompts
from attlas.errors import ConfigError, MissingExtraError, TextDataError, nearest, require_counts
from attlas.interp import HookedModel


@dataclass(frozen=True)
class LMEvalConfig:
    """Which tasks to run.

    Attributes:
        tasks: names of tasks, groups or tags, or globs of them.
        folder: task definitions of one's own (lm-eval's YAML); they may hold Python code, which runs.
        limit: at most so many documents of each task; None takes all.
        n_prompts: prompts of each embedded task.
        batch_size: sequences at a time.
        seed: of the embedded prompts and of lm-eval's few-shot examples.
    """

    tasks: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    n_prompts: int = 32
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(f"no lm-eval task is named; embedded ones are {', '.join(EMBEDDED)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit {self.limit} must be 1 or more documents of each task")
        require_counts(self, "n_prompts")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"'{self.folder}' is no folder; give one with lm-eval task definitions (.yaml)")


class LMEvalTasks:
    """Tasks with their documents, loaded once and run on several models.

    Args:
        model: whose tokenizer reads the documents, and makes the embedded prompts.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: no task has this name, or two names hold the same task.
        TextDataError: a task's data is not on this machine and cannot be fetched.
        UnsupportedModelError: the model reads no text.
    """

    def __init__(self, model: HookedModel, config: LMEvalConfig) -> None:
        require_lm_eval()
        self.config = config
        self._tokenizer = model.require_tokenizer("lm-eval tasks")
        self._folder = tempfile.TemporaryDirectory(prefix="attlas-lm-eval-")  # gone with this object
        with _quiet():
            for name in sorted(set(config.tasks) & set(EMBEDDED)):
                write_prompts(model, name, Path(self._folder.name), config.n_prompts, config.seed)
            manager, names = _find(config, Path(self._folder.name))
            self._loaded = _load(manager, names)
        for task in self._loaded["tasks"].values():
            # as lm-eval's own command does
            task.set_fewshot_seed(seed=config.seed)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)

    def run(self, hf: Any) -> dict[str, Any]:
        """lm-eval's results of a Hugging Face causal language model in memory; its weights are not changed.

        Raises:
            ConfigError: lm-eval refuses the task (code that runs what a model writes, images), or its templates do not
                fit its documents.
        """
        from jinja2 import TemplateError
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        with _quiet() as cut:
            # A copy of the tokenizer, as HFLM gives it a padding token; causal, as it does not know compact forms.
            lm = HFLM(
                pretrained=hf,
                tokenizer=copy.deepcopy(self._tokenizer),
                backend="causal",
                batch_size=self.config.batch_size,
            )
            try:
                found: dict[str, Any] = evaluate(lm=lm, task_dict=self._loaded, limit=self.config.limit)
            except (ValueError, LookupError, TemplateError) as error:
                raise ConfigError(f"lm-eval cannot run {', '.join(self.config.tasks)}: {_first_line(error)}") from error
        if cut.count:
            warnings.warn(
                f"{cut.count} requests were longer than the model's {lm.max_length} tokens and lost their beginning",
                stacklevel=2,
            )
        return found


def require_lm_eval() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm-eval tasks need the package lm_eval: pip install 'attlas[lm-eval]'")


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each task (or group) and metric of two results of `LMEvalTasks.run`.

    Standard errors are lm-eval's; that of the difference is of paired documents, and None where the metric is no mean of
    single documents. All are in the unit of the metric, a fraction for accuracy.
    """
    rows = []
    for task, values in before["results"].items():
        for key, value in values.items():
            metric, _, variant = key.partition(",")
            if not variant or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            other = after["results"][task]
            delta_stderr = _paired_stderr(before, after, task, metric, variant)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": variant,
                    "before": float(value),
                    "after": float(other[key]),
                    "delta": float(other[key] - value),
                    "stderr_before": _number(values.get(f"{metric}_stderr,{variant}")),
                    "stderr_after": _number(other.get(f"{metric}_stderr,{variant}")),
                    "delta_stderr": delta_stderr,
                    "n": before["n-samples"].get(task, {}).get("effective"),
                    "n_shot": before["n-shot"].get(task),
                    "version": before["versions"].get(task),
                }
            )
    return rows


def told(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Rows of the model card: metric before → after, each with its standard error."""
    return {
        f"lm-eval {title(row)}": f"{_value(row, 'before')} → {_value(row, 'after')} ({row['n'] or 'all'} documents, "
        f"{row['n_shot'] or 0}-shot)"
        for row in rows
    }


def title(row: Mapping[str, Any]) -> str:
    """Task and metric of a row, and the filter where there is one."""
    return f"{row['task']}, {row['metric']}" + ("" if row["filter"] == "none" else f" ({row['filter']})")


def _value(row: Mapping[str, Any], when: str) -> str:
    error = row[f"stderr_{when}"]
    return f"{row[when]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _paired_stderr(
    before: Mapping[str, Any], after: Mapping[str, Any], task: str, metric: str, variant: str
) -> float | None:
    pair = []
    for result in (before, after):
        samples = [sample for sample in result["samples"].get(task, []) if sample["filter"] == variant]
        values = [sample.get(metric) for sample in samples]
        if len(values) < 2 or not all(isinstance(value, (int, float)) for value in values):
            return None
        if not math.isclose(float(np.mean(values)), result["results"][task][f"{metric},{variant}"], rel_tol=1e-9):
            return None
        pair.append(np.asarray(values, dtype=np.float64))
    return float((pair[1] - pair[0]).std(ddof=1) / math.sqrt(len(pair[0])))


def _number(value: Any) -> float | None:
    """lm-eval writes "N/A" where there is none."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _find(config: LMEvalConfig, prompts: Path) -> tuple[Any, list[str]]:
    """(lm-eval's task manager, names with globs written out)"""
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in (prompts, config.folder) if folder is not None]
    # Its own index of 14,000 tasks takes seconds; read it only for names that are not in the folders.
    for defaults in (False, True):
        manager = TaskManager(include_path=folders, include_defaults=defaults)
        found = {name: manager.match_tasks([name]) for name in config.tasks}
        if all(found.values()):
            return manager, sorted({match for matches in found.values() for match in matches})
    name = next(name for name, matches in found.items() if not matches)
    hint = nearest(name, [*EMBEDDED, *manager.all_tasks])
    raise ConfigError(f"lm-eval has no task '{name}'{hint}; give definitions of your own as a folder (--lm-eval-path)")


def _load(manager: Any, names: list[str]) -> Any:
    """Tasks with their data."""
    from datasets.exceptions import DatasetsError

    try:
        return manager.load(names)
    except (OSError, ImportError, DatasetsError) as error:
        raise TextDataError(
            f"lm-eval cannot load {', '.join(names)}: {_first_line(error)}; fetch the data once while online, or give a "
            "definition with local data (dataset_path: json) by --lm-eval-path"
        ) from error
    except Exception as error:  # definitions are read in many places, and may run code
        raise ConfigError(
            f"lm-eval cannot load {', '.join(names)}: {_first_line(error)}; mend the definition"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Cut(logging.Filter):
    """Keeps lm-eval's remarks back, and counts those on requests cut to the context window."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += "Truncating" in record.getMessage()
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[_Cut]:
    """Without lm-eval's remarks, and without telling the hub that a data set was opened."""
    from datasets import config

    everything, models = logging.getLogger("lm_eval"), logging.getLogger("lm_eval.models.huggingface")
    levels, counts, cut = (everything.level, models.level), config.HF_UPDATE_DOWNLOAD_COUNTS, _Cut()
    everything.setLevel(logging.ERROR)
    models.setLevel(logging.WARNING)
    models.addFilter(cut)
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield cut
    finally:
        models.removeFilter(cut)
        everything.setLevel(levels[0])
        models.setLevel(levels[1])
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts

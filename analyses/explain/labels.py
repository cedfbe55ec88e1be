"""Labels of features and heads by a language model, scored on excerpts that it was not shown, beside another's label.

The protocol is that of delphi (Paulo et al. 2024, arXiv 2410.13928): detection and fuzzing. Ours: wrong marks in fuzzing lie in
excerpts on which the feature fires, an answer that cannot be read counts as "no", and each test is made again with the label
of another feature, which no part of the excerpts' form can help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import Head
from attlas.analyses.explain.asking import Asked, Asker
from attlas.analyses.explain.case import TESTS, Case
from attlas.analyses.explain.config import ExplainConfig
from attlas.analyses.explain.explainer import Explainer
from attlas.analyses.explain.head_pairs import head_cases
from attlas.analyses.explain.prompts import label_prompt, read_label
from attlas.analyses.explain.scoring import Judged, judge
from attlas.analyses.explain.tables import ANSWERS, EXCERPTS, EXPLANATIONS, SCORES
from attlas.analyses.explain.windows import feature_cases, read_windows
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.stats import bootstrap_mean
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked
from attlas.saes.base import SAE
from attlas.saes.decompose import check_feature, check_saes

_LENDERS = 8  # features looked at to lend a label where only one is explained


@dataclass(frozen=True)
class _Explained:
    case: Case
    label: str
    outcome: str


@dataclass(frozen=True)
class ExplanationsResult(Result):
    """Labels and how well they tell.

    Attributes:
        explained: of every feature or head, its label and what became of it.
        judged: the tests that were finished.
        asked: every request, in order.
        explainer: who answered.
        n_requests, n_tokens: that were sent, and what they cost; kept answers cost nothing.
    """

    kind: ClassVar[str] = "explanations"

    explained: tuple[_Explained, ...]
    judged: tuple[Judged, ...]
    asked: tuple[Asked, ...]
    explainer: str
    n_requests: int
    n_tokens: int
    config: ExplainConfig
    about: dict[str, Any]

    def labels(self) -> dict[str, str]:
        """subject → label, of those that have one."""
        return {e.case.subject: e.label for e in self.explained if e.label}

    def tables(self) -> dict[str, pa.Table]:
        told = [{"label": e.label, "outcome": e.outcome, "n_shown": len(e.case.shown)} for e in self.explained]
        excerpts = []
        for j in self.judged:
            other = j.said_control or [None] * len(j.truth)
            for e, said, control in zip(j.case.excerpts(j.test), j.said, other, strict=True):
                row = {"test": j.test, "excerpt": e.text, "truth": e.truth, "said": said, "said_control": control}
                excerpts.append(_where(j.case) | row)
        return {
            "explanations": EXPLANATIONS.table([_where(e.case) | t for e, t in zip(self.explained, told, strict=True)]),
            "explanation_scores": SCORES.table([_where(j.case) | j.row() for j in self.judged]),
            "explanation_excerpts": EXCERPTS.table(excerpts),
            "explanation_answers": ANSWERS.table(
                [
                    {"request_step": a.step, "instructions": a.prompt.system, "prompt": a.prompt.user}
                    | {"answer": a.answer, "kept": a.kept}
                    for a in self.asked
                ]
            ),
        }

    def summary(self) -> dict[str, Any]:
        """How many were labelled and scored; means over them, with bootstrap-t intervals, and the controls'."""
        found: dict[str, Any] = {"explainer": self.explainer, "n_explained": len(self.labels())}
        found |= {"n_left": sum(e.outcome in ("labelled", "not asked") for e in self.explained)}
        for test in TESTS:
            rows = [j.row() for j in self.judged if j.test == test]
            found[f"n_{test}"] = len(rows)
            for name, key in (("accuracy", test), ("control_accuracy", f"{test}_control"), ("gain", f"{test}_gain")):
                values = np.array([row[name] for row in rows if row[name] is not None])
                if len(values):
                    mean, low, high = (float(v) for v in bootstrap_mean(values, seed=self.config.seed))
                    found |= {key: mean} | ({f"{key}_low": low, f"{key}_high": high} if np.isfinite(low) else {})
            if rows:
                found[f"{test}_unread"] = sum(r["n_unread"] for r in rows) / sum(r["n_excerpts"] for r in rows)
        return found | {"n_requests": self.n_requests, "n_tokens_asked": self.n_tokens}

    def plot(self) -> Any:
        """Each one's accuracies, beside those with another's label."""
        figure = new_figure()
        for test in TESTS:
            rows = [(j.case.subject.rpartition("/")[2], j.row()) for j in self.judged if j.test == test]
            names = [name for name, _ in rows]
            figure.add_bar(x=names, y=[row["accuracy"] for _, row in rows], name=test)
            figure.add_bar(x=names, y=[row["control_accuracy"] for _, row in rows], name=f"{test}, another's label")
        return figure.add_hline(y=0.5)

    def _recorded_config(self) -> Any:
        return {**self.about, **vars(self.config), "explainer": self.explainer}


def _where(case: Case) -> dict[str, Any]:
    return {"subject": case.subject, "feature": case.feature, "layer": case.layer, "head": case.head}


def explain(
    model: AnyModel,
    sae: SAE,
    data: TokenDataset,
    features: Sequence[int],
    explainer: Explainer | Asker,
    config: ExplainConfig | None = None,
    *,
    hook: str | None = None,
    of: str = "",
    track: Track = no_track,
) -> ExplanationsResult:
    """Label features from excerpts on which they fire, and score the labels on others.

    Args:
        model: a language model, or anything `as_hooked` takes.
        data: the text that excerpts are cut from.
        features: which; of one alone, another is labelled besides, whose label is the control's.
        explainer: who answers; an `Asker` has a budget and keeps answers.
        hook: where the autoencoder sits; by default the hook it was trained on.
        of: id of the autoencoder's run, by which notes name its features; by default its hook.

    Raises:
        ConfigError: no feature, or none of this number; an autoencoder that does not fit the model.
        EndpointError, ContextLengthError: as the explainer.

    Example:
        >>> from attlas.analyses.explain import ExplainConfig, LocalExplainer, explain
        >>> config = ExplainConfig(context=8, n_shown=3, n_test=8, per_prompt=2, label_tokens=4, answer_tokens=4)
        >>> found = explain(model, sae, text, [0, 1], LocalExplainer(model), config)
        >>> sorted(found.tables())
        ['explanation_answers', 'explanation_excerpts', 'explanation_scores', 'explanations']
    """
    config, model, hook = config or ExplainConfig(), as_hooked(model), hook or sae.cfg.hook_name
    model.require_language_model()
    features = list(dict.fromkeys(features))
    if not features:
        raise ConfigError("there is no feature to explain; give one or more")
    for feature in features:
        check_feature(sae, feature)
    sae = check_saes(model, {hook: sae})[hook]
    lenders: list[int] = []
    if config.control and len(features) == 1:
        drawn = np.random.default_rng(config.seed).permutation(sae.cfg.d_sae)[: _LENDERS + 1].tolist()
        lenders = [f for f in drawn if f not in features][:_LENDERS]
    windows = read_windows(model, sae, hook, data, [*features, *lenders], config.context, track)
    cases = feature_cases(windows, model, of or hook, [*features, *lenders], config)
    about = {"features": features, "hook": hook}
    asked_for, spare = cases[: len(features)], cases[len(features) :]
    return _explained(asked_for, spare, _asker(explainer), config, about, track)


def explain_heads(
    sequences: pa.Table,
    texts: pa.Table,
    name: str,
    chosen: Sequence[Head],
    explainer: Explainer | Asker,
    config: ExplainConfig | None = None,
    *,
    track: Track = no_track,
) -> ExplanationsResult:
    """Label heads from sequences that show them, and score the labels on other sequences.

    Args:
        sequences, texts: tables head_sequences and head_texts of a run of `heads` on text.
        name: the model's name, by which notes name its heads.
        chosen: (layer, head) of each.

    Raises:
        ConfigError: no head, one that the tables lack, or a run on images.

    Example:
        >>> from attlas.analyses.explain import ExplainConfig, LocalExplainer, explain_heads
        >>> from attlas.analyses.heads import HeadsConfig, head_atlas
        >>> tables = head_atlas(model, text, HeadsConfig(n_control=0, n_repeats=0)).tables()
        >>> config = ExplainConfig(n_shown=3, n_test=8, per_prompt=1, control=False, label_tokens=4, answer_tokens=4)
        >>> explainer = LocalExplainer(model)
        >>> found = explain_heads(tables["head_sequences"], tables["head_texts"], model.name, [(3, 0)], explainer, config)
        >>> [e.case.subject for e in found.explained]
        ['head/gpt2-mini/3.0']
    """
    config = config or ExplainConfig()
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise ConfigError("there is no head to explain; give one or more")
    lenders: list[Head] = []
    if config.control and len(chosen) == 1:
        there = dict.fromkeys(zip(sequences["layer"].to_pylist(), sequences["head"].to_pylist(), strict=True))
        others = [head for head in there if head not in chosen]
        lenders = [others[i] for i in np.random.default_rng(config.seed).permutation(len(others))[:_LENDERS]]
    cases = head_cases(sequences, texts, name, [*chosen, *lenders], config)
    about = {"heads": [f"{layer}.{head}" for layer, head in chosen]}
    return _explained(cases[: len(chosen)], cases[len(chosen) :], _asker(explainer), config, about, track)


def _asker(explainer: Explainer | Asker) -> Asker:
    return explainer if isinstance(explainer, Asker) else Asker(explainer)


def _explained(
    cases: list[Case], spare: list[Case], asker: Asker, config: ExplainConfig, about: dict[str, Any], track: Track
) -> ExplanationsResult:
    """Labels first, of all; then the tests, one case after the other, so that a budget that ends leaves whole ones."""
    found = [_labelled(case, asker, config) for case in track(cases, "labels", len(cases))]
    if lender := next((case for case in spare if case.enough), None):
        found.append(replace(_labelled(lender, asker, config), outcome="lender"))
    lends = _lends(found, config)
    judged: list[Judged] = []
    for at, one in enumerate(track(found, "scores", len(found))):
        if one.outcome != "labelled":
            continue
        done = [j for test in TESTS if (j := _judged(one, test, lends.get(at), asker, config)) is not None]
        judged += done
        if len(done) == len(TESTS) and all(j.said_control is not None or lends.get(at) is None for j in done):
            found[at] = replace(one, outcome="scored")
    name = asker.explainer.name
    return ExplanationsResult(
        tuple(found), tuple(judged), tuple(asker.asked), name, asker.n_requests, asker.n_tokens, config, about
    )


def _labelled(case: Case, asker: Asker, config: ExplainConfig) -> _Explained:
    if not case.enough:
        return _Explained(case, "", "few excerpts")
    answer = asker.ask(f"label of {case.subject}", label_prompt(case, config))
    if answer is None:
        return _Explained(case, "", "not asked")
    label = read_label(answer)
    return _Explained(case, label, "labelled" if label else "no label")


def _lends(found: list[_Explained], config: ExplainConfig) -> dict[int, str]:
    """Place → the label of its control: the next one's in a drawn order, of other words where there are such."""
    if not config.control:
        return {}
    named = [at for at, one in enumerate(found) if one.label]
    order = [named[i] for i in np.random.default_rng([config.seed, len(named)]).permutation(len(named))]
    lends = {}
    for i, at in enumerate(order):
        others = [found[o].label for o in [*order[i + 1 :], *order[:i]]]
        different = [label for label in others if label.lower() != found[at].label.lower()]
        if others:
            lends[at] = (different or others)[0]
    return lends


def _judged(one: _Explained, test: str, other: str | None, asker: Asker, config: ExplainConfig) -> Judged | None:
    said = judge(asker, one.case, test, one.label, config, one.case.subject)
    if said is None:
        return None
    control = None
    if other is not None:
        control = judge(asker, one.case, test, other, config, f"{one.case.subject}, another's label")
    truth = [excerpt.truth for excerpt in one.case.excerpts(test)]
    return Judged(one.case, test, truth, said, other, control)

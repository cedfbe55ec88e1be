"""Labels and scores: excerpts against a brute-force pass, an oracle scores 1 and its control at chance, budgets and repeats."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from transformers import GPT2Config, GPT2LMHeadModel

from attlas.analyses.explain import Asker, ExplainConfig, Prompt, Reply, explain, explain_heads
from attlas.analyses.explain.case import Case, Excerpt
from attlas.analyses.explain.labels import _explained
from attlas.analyses.explain.prompts import read_label, read_marks
from attlas.analyses.explain.scoring import Judged
from attlas.analyses.explain.windows import feature_cases, read_windows
from attlas.analyses.heads import HeadsConfig, head_atlas
from attlas.data.progress import no_track
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel, load_model
from attlas.saes import SAE, SAEConfig
from attlas.saes.architectures import create_sae

HOOK = "blocks.0.attn.hook_z"
CONFIG = ExplainConfig(context=6, n_shown=4, n_test=12, per_prompt=5)


@dataclass
class Scripted:
    """Labels by the word that is marked, judges by that word; or answers always the same."""

    always: str | None = None
    name: str = "scripted"
    asked: list[Prompt] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return f"scripted {self.always}"

    def ask(self, prompt: Prompt) -> Reply:
        self.asked.append(prompt)
        if self.always is not None:
            return Reply(self.always, 3)
        first, *lines = [line for line in prompt.user.splitlines() if line]
        if not first.startswith("Description: "):
            return Reply(f"LABEL: {re.findall('<<(.+?)>>', first)[0]}", 3)
        word = first.removeprefix("Description: ")
        sought = f"<<{word}>>" if any("<<" in line for line in lines) else word
        return Reply(str([int(sought in line) for line in lines]), 3)


def _case(i: int, word: str, n: int = 10) -> Case:
    """A feature that fires on a word."""
    detection = [Excerpt(f"a {word} is here {j}", True) for j in range(n)]
    detection += [Excerpt(f"nothing of it {j}", False) for j in range(n)]
    fuzzing = [Excerpt(f"a <<{word}>> is here {j}", True) for j in range(n)]
    fuzzing += [Excerpt(f"a {word} is <<here>> {j}", False) for j in range(n)]
    shown = tuple(f"one <<{word}>> more {j}" for j in range(3))
    return Case(f"feature/run/{i}", shown, tuple(detection), tuple(fuzzing), feature=i)


CASES = [_case(i, word) for i, word in enumerate(("cat", "dog", "sun"))]


def test_an_oracle_scores_one_and_with_anothers_label_at_chance() -> None:
    found = _explained(CASES, [], Asker(Scripted()), CONFIG, {}, no_track)
    assert found.labels() == {"feature/run/0": "cat", "feature/run/1": "dog", "feature/run/2": "sun"}
    rows = [j.row() for j in found.judged]
    assert len(rows) == 6
    for row in rows:
        assert (row["accuracy"], row["control_accuracy"], row["gain"]) == (1.0, 0.5, 0.5)
        assert row["low"] < 1.0 == row["high"]
        assert row["gain_low"] > 0.2
        assert row["n_excerpts"] == 20
    told = found.summary()
    assert (told["detection"], told["detection_control"], told["n_left"], told["n_detection"]) == (1.0, 0.5, 0, 3)
    assert {e.outcome for e in found.explained} == {"scored"}
    assert all(j.control_label != label for j in found.judged for label in [found.labels()[j.case.subject]])


@pytest.mark.parametrize(("answer", "unread"), [("[1, 1, 1, 1, 1]", 0), ("I cannot say.", 20)])
def test_an_explainer_that_knows_nothing_is_at_chance(answer: str, unread: int) -> None:
    found = _explained(CASES[:2], [], Asker(Scripted(answer)), CONFIG, {}, no_track)
    for row in (j.row() for j in found.judged):
        assert (row["accuracy"], row["n_unread"], row["gain"]) == (0.5, unread, 0.0)
        assert row["low"] < 0.5 < row["high"]


def test_accuracy_is_sklearns_and_a_wrong_answer_costs() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation([True, False] * 10).tolist()
    said = (rng.random(20) < 0.7).tolist()
    row = Judged(CASES[0], "detection", truth, said, "other", [not s for s in said]).row()
    assert row["accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert row["control_accuracy"] == pytest.approx(balanced_accuracy_score(truth, [not s for s in said]))
    flipped = Judged(CASES[0], "detection", truth, [not truth[0], *truth[1:]]).row()
    assert flipped["accuracy"] == pytest.approx(0.95)


def test_a_budget_ends_early_and_the_same_call_goes_on(tmp_path: Path) -> None:
    whole = _explained(CASES, [], Asker(Scripted()), CONFIG, {}, no_track)
    parts, answered = [], 0
    for _ in range(4):
        scripted = Scripted()
        parts.append(_explained(CASES, [], Asker(scripted, tmp_path, max_requests=14), CONFIG, {}, no_track))
        answered += len(scripted.asked)
    outcomes = [[e.outcome for e in part.explained] for part in parts]
    assert outcomes[0] == ["labelled"] * 3
    assert outcomes[-1] == ["scored"] * 3
    assert parts[0].summary()["n_left"] == 3
    assert parts[-1].tables()["explanation_scores"].equals(whole.tables()["explanation_scores"])
    assert answered == whole.n_requests  # nothing was asked twice
    none = _explained(CASES, [], Asker(Scripted(), max_requests=1), CONFIG, {}, no_track)
    assert [e.outcome for e in none.explained] == ["labelled", "not asked", "not asked"]


def test_answers_are_read_as_they_come() -> None:
    assert read_label("LABEL: first\nLABEL:  **ships at sea** \nmore") == "ships at sea"
    assert read_label("ships\nmore") == "ships"
    assert read_label("LABEL:") == read_label(" \n ") == ""
    assert len(read_label("x" * 999)) == 200
    assert read_marks("1. [0, 1] or rather [1,1,]", 2) == [True, True]
    assert read_marks("[0, 1, 1]", 2) is None
    assert read_marks("10", 2) == [True, False]
    assert read_marks("Excerpts 1 and 0", 2) is None


@pytest.fixture(scope="module")
def tiny() -> HookedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return load_model(model)


@pytest.fixture(scope="module")
def sae() -> SAE:
    torch.manual_seed(0)
    found = create_sae(SAEConfig(arch="topk", d_in=16, d_sae=24, k=2, hook_name=HOOK, n_heads=2, d_head=8))
    torch.nn.init.normal_(found.W_enc)
    return found


@pytest.fixture(scope="module")
def data() -> TokenDataset:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 61, (24, 32), generator=draw)
    tokens[1] = tokens[0]  # a text that comes twice
    return TokenDataset.from_tokens(tokens, "random")


def test_excerpts_are_those_of_a_brute_force_pass(tiny: HookedModel, sae: SAE, data: TokenDataset) -> None:
    with torch.no_grad():
        z = tiny.run_with_cache(data.tokens, [HOOK])[1][HOOK].flatten(-2)
        dense = sae.encode(z).numpy()
    known: dict[str, np.ndarray] = {}  # text → [6, 24]
    for row in range(len(data.tokens)):
        for start in range(1, 1 + 6 * 5, 6):
            text = " ".join(map(str, data.tokens[row, start : start + 6].tolist()))
            known.setdefault(text, dense[row, start : start + 6])
    features = list(range(24))
    windows = read_windows(tiny, sae, HOOK, data, features, 6)
    assert len(windows.ids) == len(known) == 23 * 5
    cases = feature_cases(windows, tiny, "run", features, CONFIG)
    enough = [case for case in cases if case.enough]
    assert len(enough) >= 5
    for case in enough:
        f = case.feature
        assert f is not None
        plain = {test: [re.sub("<<|>>", "", e.text) for e in case.excerpts(test)] for test in ("detection", "fuzzing")}
        plain = {test: [" ".join(text.split()) for text in texts] for test, texts in plain.items()}
        shown = [" ".join(re.sub("<<|>>", "", text).split()) for text in case.shown]
        assert not set(shown) & {*plain["detection"], *plain["fuzzing"]}  # held out
        for test, texts in plain.items():
            truth = [e.truth for e in case.excerpts(test)]
            assert sum(truth) * 2 == len(truth) == len(set(texts))
        for excerpt, text in zip(case.detection, plain["detection"], strict=True):
            assert "<<" not in excerpt.text
            assert excerpt.truth == (known[text][:, f].max() > 0)
        for excerpt, text in zip(case.fuzzing, plain["fuzzing"], strict=True):
            acts = known[text][:, f]
            marks = [part.startswith("<<") for part in re.findall(r"<<\s?\d+>>|\d+", excerpt.text)]
            right = acts >= 0.3 * acts.max()
            assert acts.max() > 0
            assert sum(marks) == right.sum()
            assert (np.array(marks) == right).all() if excerpt.truth else not acts[marks].any()
        strongest = sorted((known[t][:, f].max() for t in shown), reverse=True)
        assert [known[t][:, f].max() for t in shown[:2]] == pytest.approx(strongest[:2])


def test_one_feature_borrows_a_label_for_its_control(
    tiny: HookedModel, sae: SAE, data: TokenDataset, tmp_path: Path
) -> None:
    windows = read_windows(tiny, sae, HOOK, data, range(24), 6)
    one = next(c.feature for c in feature_cases(windows, tiny, "", range(24), CONFIG) if c.enough)
    assert one is not None
    found = explain(tiny, sae, data, [one], Scripted(), CONFIG, of="sae-run")
    assert [e.outcome for e in found.explained] == ["scored", "lender"]
    assert {j.control_label for j in found.judged} == {found.explained[1].label}
    assert {j.case.subject for j in found.judged} == {f"feature/sae-run/{one}"}
    saved = found.save(tmp_path, tiny, data)
    assert (saved.kind, saved.config["features"], saved.config["explainer"]) == ("explanations", [one], "scripted")
    alone = explain(tiny, sae, data, [one], Scripted(), ExplainConfig(6, 4, 12, control=False))
    assert [e.outcome for e in alone.explained] == ["scored"]
    assert alone.judged[0].row()["control_accuracy"] is None
    with pytest.raises(ConfigError, match="24"):
        explain(tiny, sae, data, [24], Scripted(), CONFIG)
    with pytest.raises(ConfigError, match="no feature"):
        explain(tiny, sae, data, [], Scripted(), CONFIG)


def test_excerpts_of_heads_are_kept_pairs_and_others(tiny: HookedModel, data: TokenDataset) -> None:
    tables = head_atlas(tiny, data, HeadsConfig(n_top=12, n_control=0, n_repeats=0)).tables()
    sequences = tables["head_sequences"]
    words = [[f" {t}" for t in row] for row in data.tokens.tolist()]
    texts = tables["head_texts"].set_column(
        1, "tokens", [[words[s] for s in tables["head_texts"]["sequence"].to_pylist()]]
    )
    asked = ExplainConfig(n_shown=6, n_test=12, control=False)
    (first,) = explain_heads(sequences, texts, "tiny", [(0, 1)], Scripted(), asked).explained
    assert (first.case.subject, first.case.layer, first.case.head) == ("head/tiny/0.1", 0, 1)
    kept: set[tuple[str, str]] = set()  # (query's token, key's token) of all sequences of the head
    for row in sequences.to_pylist():
        if (row["head"], row["by"]) == (1, "weight"):
            tokens = data.tokens[row["sequence"]].tolist()
            kept |= {(str(tokens[q]), str(tokens[k])) for q, k in zip(row["query"], row["key"], strict=True)}
    for text, truth in [(t, True) for t in first.case.shown] + [
        (e.text, e.truth) for e in first.case.fuzzing if e.truth
    ]:
        query = re.findall(r"<<\s*(?:\[\[)?\s*(\d+)", text)
        key = re.findall(r"\[\[\s*(\d+)", text)
        assert len(query) == len(key) == 1
        assert truth
        assert (query[0], key[0]) in kept
    for test in ("detection", "fuzzing"):
        truths = [e.truth for e in first.case.excerpts(test)]
        assert sum(truths) * 2 == len(truths) >= 8
    with pytest.raises(ConfigError, match=r"head 5\.0"):
        explain_heads(sequences, texts, "tiny", [(5, 0)], Scripted())

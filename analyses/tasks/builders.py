"""How the prompts of each task are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.analyses.tasks.task import Task, TaskConfig
from attlas.analyses.tasks.words import (
    ARGUMENTS,
    COLOURS,
    DOC_WORDS,
    IOI_TEMPLATES,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    THINGS,
    capitalised_words,
    need,
    single_tokens,
    token_ids,
)
from attlas.data.text import load_tokens
from attlas.data.tokenizing import bos_of
from attlas.errors import TaskError
from attlas.interp import HookedModel

HALF = 24  # tokens in each half of a repeated-random prompt
WINDOW = 64  # tokens of a natural induction prompt


@dataclass
class _Rows:
    """Prompts under way."""

    tokens: list[list[int]] = field(default_factory=list)
    corrupted: list[list[int]] = field(default_factory=list)
    right: list[list[int]] = field(default_factory=list)
    wrong: list[list[int]] = field(default_factory=list)
    roles: list[dict[str, int]] = field(default_factory=list)

    def add(
        self, clean: list[int], corrupted: list[int], right: Sequence[int], wrong: Sequence[int], roles: dict[str, int]
    ) -> None:
        self.tokens.append(clean)
        self.corrupted.append(corrupted)
        self.right.append(list(right))
        self.wrong.append(list(wrong))
        self.roles.append(roles)

    def task(self, name: str, metric: str = "logit", notes: tuple[str, ...] = ()) -> Task:
        roles = {key: torch.tensor([r[key] for r in self.roles]) for key in self.roles[0]}
        tokens = torch.tensor(self.tokens)
        return Task(
            name=name,
            tokens=tokens,
            corrupted=torch.tensor(self.corrupted),
            right=_padded(self.right),
            wrong=_padded(self.wrong),
            positions=torch.full((len(tokens),), tokens.shape[1] - 1),
            roles=roles,
            metric=metric,
            notes=notes,
        )


def _padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _start(model: HookedModel) -> list[int]:
    bos = bos_of(model.tokenizer)
    return [] if bos is None else [bos]


def _ids(model: HookedModel, text: str) -> list[int]:
    tokenizer = model.require_tokenizer("tasks")
    return _start(model) + token_ids(tokenizer, text)


def _one(model: HookedModel, word: str) -> int:
    return token_ids(model.tokenizer, word)[0]


def ioi(model: HookedModel, config: TaskConfig) -> Task:
    """Indirect object identification; templates that come to the same length in this tokenizer are mixed."""
    rng = random.Random(config.seed)
    _ids(model, "")
    tokenizer = model.tokenizer
    names = single_tokens(tokenizer, NAMES)
    notes: tuple[str, ...] = ()
    if len(names) < 8:
        names = capitalised_words(tokenizer, 40)
        notes = ("the tokenizer has fewer than 8 names as one token: capitalised words stand in for them",)
    if len(names) < 6:
        raise TaskError(f"the tokenizer has {len(names)} capitalised words as one token and ioi needs 6; use induction")
    places, things = need(tokenizer, PLACES, 1, "places"), need(tokenizer, THINGS, 1, "things")
    templates = _equal_length(model, names, places[0], things[0])
    rows = _Rows()
    for index in range(config.n_prompts):
        a, b, c, d, e = rng.sample(names, 5)
        repeats_second = config.variant == "abba" or (config.variant == "mixed" and index % 2 == 0)
        s, io = (b, a) if repeats_second else (a, b)
        words = {"place": rng.choice(places), "thing": rng.choice(things)}
        template = rng.choice(templates)
        clean = _ids(model, template.format(A=a, B=b, S=s, **words))
        other = {
            "abc": {"A": c, "B": d, "S": e},
            "s2": {"A": a, "B": b, "S": c},
            "swap": {"A": a, "B": b, "S": io},
        }[config.corruption]
        at = {name: [i for i, t in enumerate(clean) if t == _one(model, name)] for name in (s, io)}
        roles = {"IO": at[io][0], "S1": at[s][0], "S1+1": at[s][0] + 1, "S2": at[s][1], "END": len(clean) - 1}
        rows.add(clean, _ids(model, template.format(**other, **words)), [_one(model, io)], [_one(model, s)], roles)
    return rows.task("ioi", notes=notes)


def _equal_length(model: HookedModel, names: list[str], place: str, thing: str) -> list[str]:
    """The largest group of templates that have the same number of tokens (one name, place and thing is as long as another)."""
    groups: dict[int, list[str]] = {}
    for template in IOI_TEMPLATES:
        length = len(_ids(model, template.format(A=names[0], B=names[1], S=names[1], place=place, thing=thing)))
        groups.setdefault(length, []).append(template)
    return max(groups.values(), key=len)


def induction(model: HookedModel, config: TaskConfig) -> Task:
    """Random tokens, and the first half of them again; corrupted: other tokens first, so that nothing repeats."""
    generator = torch.Generator().manual_seed(config.seed)
    start = _start(model) if model.tokenizer is not None else []
    low = max(start, default=-1) + 1 if max(start, default=-1) < 64 else 0
    at = HALF // 2  # the last token seen a second time
    rows = _Rows()
    for _ in range(config.n_prompts):
        draw = (torch.randperm(model.cfg.d_vocab - low, generator=generator)[: 2 * HALF] + low).tolist()
        first, other = draw[:HALF], draw[HALF:]
        roles = {"previous": len(start) + at, "source": len(start) + at + 1, "END": len(start) + HALF + at}
        rows.add(
            [*start, *first, *first[: at + 1]],
            [*start, *other, *first[: at + 1]],
            [first[at + 1]],
            [first[at // 2]],
            roles,
        )
    return rows.task("induction")


def induction_natural(model: HookedModel, config: TaskConfig) -> Task:
    """Windows of held-out text that end in the first half of a pair of tokens seen once before.

    Corrupted: the earlier first half becomes another token of the window, so that the pair is not there to be copied.
    """
    rng = random.Random(config.seed)
    _ids(model, "")
    length = min(WINDOW, model.cfg.n_ctx)
    data = load_tokens("embedded:val", model.tokenizer, seq_len=length + 1, n_tokens=4096 * (length + 1))
    rows = _Rows()
    for index in rng.sample(range(len(data)), len(data)):
        window = data.tokens[index].tolist()
        clean, answer = window[:length], window[length]
        seen = [i for i in range(1, length - 4) if clean[i] == clean[-1]]
        if len(seen) != 1 or clean[seen[0] + 1] != answer or not model.to_str_tokens([answer])[0].strip().isalnum():
            continue
        source = seen[0] + 1
        others = [t for i, t in enumerate(clean[1:], 1) if t not in (answer, clean[-1]) and i != source]
        corrupted = list(clean)
        corrupted[seen[0]] = rng.choice(others)
        roles = {"previous": seen[0], "source": source, "END": length - 1}
        rows.add(clean, corrupted, [answer], [rng.choice(others)], roles)
        if len(rows.tokens) == config.n_prompts:
            break
    if not rows.tokens:
        raise TaskError("the held-out text has no pair of tokens that comes again within a window; use induction")
    short = len(rows.tokens) < config.n_prompts
    return rows.task("induction-natural", notes=(f"only {len(rows.tokens)} windows qualify",) if short else ())


def greater_than(model: HookedModel, config: TaskConfig) -> Task:
    """Years: the end must be later than the start. Right and wrong are whole next tokens, a year's or its first digit's."""
    rng = random.Random(config.seed)
    _ids(model, "")
    nouns = need(model.tokenizer, NOUNS, 1, "nouns")
    drawn: dict[int, _Rows] = {}
    for _ in range(40 * config.n_prompts + 40):
        noun, century, start = rng.choice(nouns), rng.randint(12, 18), rng.randint(12, 88)
        text = f"The{noun} lasted from the year {century}{start:02d} to the year {century}"
        clean = _ids(model, text)
        corrupted = _ids(model, f"The{noun} lasted from the year {century}01 to the year {century}")
        later = _first_tokens(model, text, clean, range(start + 1, 100))
        earlier = _first_tokens(model, text, clean, range(start))
        if len(corrupted) != len(clean) or clean == corrupted or not (later - earlier and earlier - later):
            continue
        at = next(i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b)
        rows = drawn.setdefault(len(clean), _Rows())
        roles = {"YY": at, "END": len(clean) - 1}
        rows.add(clean, corrupted, sorted(later - earlier), sorted(earlier - later), roles)
        if len(rows.tokens) == config.n_prompts:
            break
    if not drawn:
        raise TaskError("the tokenizer does not part years into the century and the rest; use another task")
    rows = max(drawn.values(), key=lambda r: len(r.tokens))
    return rows.task("greater-than", metric="probability")


def _first_tokens(model: HookedModel, text: str, prefix: list[int], years: range) -> set[int]:
    """The tokens that would come next for each two-digit year, as far as the tokenizer keeps the prefix as it is."""
    found = set()
    for year in years:
        ids = _ids(model, f"{text}{year:02d}")
        if ids[: len(prefix)] == prefix and len(ids) > len(prefix):
            found.add(ids[len(prefix)])
    return found


def docstring(model: HookedModel, config: TaskConfig) -> Task:
    """A docstring's third parameter, after two were named (Heimersheim & Janiak 2023); corrupted: another third argument."""
    rng = random.Random(config.seed)
    _ids(model, "")
    arguments = need(model.tokenizer, ARGUMENTS, 8, "argument names")
    words = need(model.tokenizer, DOC_WORDS, 3, "words")
    rows = _Rows()
    text = 'def load(self,{0},{1},{2},{3}):\n    """{4}{5}\n\n    :param{1}:{4}{5}\n    :param{2}:{5}{6}\n    :param'
    for _ in range(config.n_prompts):
        before, a, b, c, other = rng.sample(arguments, 5)
        w = rng.sample(words, 3)
        clean = _ids(model, text.format(before, a, b, c, *w))
        corrupted = _ids(model, text.format(before, a, b, other, *w))
        target = _one(model, c)
        roles = {"C": clean.index(target), "END": len(clean) - 1}
        rows.add(clean, corrupted, [target], [_one(model, x) for x in (before, a, b)], roles)
    return rows.task("docstring")


def colour_objects(model: HookedModel, config: TaskConfig) -> Task:
    """The colour of one of three things (after Ippolito & Callison-Burch's Reasoning about Colored Objects); corrupted:
    another of the three is asked for."""
    rng = random.Random(config.seed)
    _ids(model, "")
    colours = need(model.tokenizer, COLOURS, 3, "colours")
    objects = need(model.tokenizer, OBJECTS, 3, "objects")
    rows = _Rows()
    text = "On the table, there is a{0}{3}, a{1}{4}, and a{2}{5}. The color of the{6} is"
    for index in range(config.n_prompts):
        c, o = rng.sample(colours, 3), rng.sample(objects, 3)
        asked, other = index % 3, (index + rng.choice((1, 2))) % 3
        clean = _ids(model, text.format(*c, *o, o[asked]))
        corrupted = _ids(model, text.format(*c, *o, o[other]))
        wanted = _one(model, c[asked])
        roles = {"colour": clean.index(wanted), "object": clean.index(_one(model, o[asked])), "END": len(clean) - 1}
        roles["asked"] = len(clean) - 2
        rows.add(clean, corrupted, [wanted], [_one(model, x) for i, x in enumerate(c) if i != asked], roles)
    return rows.task("colour-objects")


BUILDERS: dict[str, Callable[[HookedModel, TaskConfig], Task]] = {
    "ioi": ioi,
    "induction": induction,
    "induction-natural": induction_natural,
    "greater-than": greater_than,
    "docstring": docstring,
    "colour-objects": colour_objects,
}

"""What a note is about, as one line of text: "feature/SAE-RUN/746", "head/MODEL/3.0" or "run/RUN"."""

from __future__ import annotations

from attlas.errors import ConfigError


def feature_subject(sae: str, feature: int) -> str:
    """Of a feature of an autoencoder, by the id of its run.

    >>> feature_subject("sae-gpt2-mini-745c1b3e", 746)
    'feature/sae-gpt2-mini-745c1b3e/746'
    """
    return f"feature/{sae}/{feature}"


def head_subject(model: str, layer: int, head: int) -> str:
    """Of a head of a model, by the model's name.

    >>> head_subject("gpt2-mini", 3, 0)
    'head/gpt2-mini/3.0'
    """
    return f"head/{model}/{layer}.{head}"


def run_subject(run: str) -> str:
    """Of a run, by its id; the label is its name.

    >>> run_subject("sae-gpt2-mini-745c1b3e")
    'run/sae-gpt2-mini-745c1b3e'
    """
    return f"run/{run}"


def parse_subject(subject: str) -> tuple[str, str, tuple[int, ...]]:
    """(kind, autoencoder's run or model or run, (feature,) or (layer, head) or ()).

    Raises:
        ConfigError: it is no subject.

    >>> parse_subject("head/some/model/3.0")
    ('head', 'some/model', (3, 0))
    """
    kind, _, rest = subject.partition("/")
    if kind == "run" and rest and "/" not in rest:
        return kind, rest, ()
    of, _, number = rest.rpartition("/")
    parts = number.split(".")
    if of and all(p.isdecimal() and len(p) < 10 for p in parts) and len(parts) == {"feature": 1, "head": 2}.get(kind):
        return kind, of, tuple(int(p) for p in parts)
    raise ConfigError(
        f"'{subject[:80]}' is not what a note can be about; write feature/SAE-RUN/746, head/MODEL/3.0 or run/RUN"
    )

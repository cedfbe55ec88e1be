"""Every term of the field that Attlas prints or draws, defined once.

`docs/glossary.md` is written from here (`python -m attlas.data.glossary FILE`, part of `make docs`), and the headings of
the dashboard's tables show the same sentences as tooltips.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attlas.data.files import write_text_atomic


@dataclass(frozen=True)
class Term:
    """A term with what it is counted in, and the columns of tables that it explains wherever they stand."""

    name: str
    symbol: str
    unit: str
    meaning: str
    source: str = ""
    columns: tuple[str, ...] = ()

    @property
    def tooltip(self) -> str:
        """One line: the meaning, with the unit where there is one."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning


HOOKS = (
    Term(
        "hook_z",
        "z",
        "",
        "What the heads of a layer read from the values, before W_O, all heads concatenated: "
        "[batch, position, n_heads · d_head].",
        "TransformerLens",
    ),
    Term(
        "pattern",
        "A",
        "fraction",
        "Attention weights after the softmax: row = query, column = key; each row sums to 1.",
        "Vaswani et al. 2017, arXiv 1706.03762",
    ),
    Term("head", "h", "", "One attention head, written layer.head, both from 0.", "", ("head",)),
    Term(
        "key-value head",
        "n_kv_heads",
        "",
        "In grouped-query attention several heads share keys and values: head h reads key-value "
        "head ⌊h · n_kv_heads / n_heads⌋.",
        "Ainslie et al. 2023, arXiv 2305.13245",
    ),
    Term(
        "residual stream",
        "x",
        "",
        "The vector of d_model numbers a position carries from layer to layer; attention and MLP add to it.",
        "Elhage et al. 2021",
    ),
    Term("layer", "l", "", "A block of attention and MLP, numbered from 0.", "", ("layer",)),
)

SAES = (
    Term(
        "feature",
        "f",
        "",
        "One unit of a sparse autoencoder: a column of W_enc that reads, a row of W_dec that writes.",
        "Kissane et al. 2024, arXiv 2406.17759",
        ("feature",),
    ),
    Term("d_sae", "F", "features", "Width of a sparse autoencoder: its number of features.", "", ("d_sae",)),
    Term("L0", "L0", "features", "Features with an activation above 0, mean over tokens.", "", ("l0",)),
    Term(
        "explained variance",
        "EV",
        "fraction",
        "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²: sums over all tokens and dimensions, x̄ the mean over tokens.",
        "",
        ("explained_variance",),
    ),
    Term(
        "CE loss recovered",
        "",
        "fraction",
        "(CE with z zeroed − CE with the reconstruction) / (CE with z zeroed − CE of the whole "
        "model); 1 is perfect, 0 no better than zero.",
        "Kissane et al. 2024, arXiv 2406.17759",
        ("ce_recovered",),
    ),
    Term(
        "dead feature",
        "",
        "fraction",
        "A feature active on none of a stated number of tokens; the dead fraction is of d_sae.",
        "Gao et al. 2024, arXiv 2406.04093",
        ("dead_fraction",),
    ),
    Term("density", "", "fraction", "Share of tokens on which a feature is active.", "", ("density",)),
    Term(
        "head share",
        "",
        "fraction",
        "Head weight attribution: norm of a feature's decoder row within a head's slice, over the sum of these norms.",
        "Kissane et al. 2024, arXiv 2406.17759",
        ("top_head_share",),
    ),
    Term(
        "direct feature attribution",
        "DFA",
        "pre-activation",
        "A feature's pre-activation as a sum over heads and source tokens: A[dest, src] · (v[src] "
        "· W_enc[head, feature]).",
        "Kissane et al. 2024, arXiv 2406.17759",
        ("dfa_sources", "dfa_heads"),
    ),
    Term(
        "shrinkage",
        "",
        "",
        "Slope of the regression of x̂ on x: below 1, reconstructions are too small.",
        "",
    ),
    Term(
        "family",
        "",
        "",
        "Induction, local or long-range: a score of where a feature's attribution lies that "
        "exceeds its null after correction, and passes a check.",
        "after Kissane et al. 2024; docs/features.md",
        ("family",),
    ),
    Term(
        "null",
        "",
        "",
        "The same statistic on random directions made for it (same head norms and density): what a "
        "feature gets for nothing.",
        "docs/features.md",
        ("null_groups", "induction_null", "local_null", "long_range_null"),
    ),
    Term(
        "excess",
        "",
        "",
        "A score less the mean of its null.",
        "",
        ("excess", "induction_excess", "local_excess", "long_range_excess"),
    ),
    Term(
        "polysemantic head",
        "",
        "",
        "A head whose top features fall into more groups than a random dictionary's with the same head shares.",
        "after Kissane et al. 2024",
        ("n_groups",),
    ),
)

ATTENTION = (
    Term(
        "attention entropy",
        "H",
        "nats",
        "−Σ a·log a over keys, per query; of a head the mean over queries.",
        "Zhai et al. 2023, arXiv 2303.06296",
        ("entropy",),
    ),
    Term(
        "normalised entropy",
        "",
        "fraction",
        "Entropy over the log of the number of keys a query may see, so that rows of different length compare.",
        "",
        ("normalized",),
    ),
    Term(
        "lower bound of entropy",
        "",
        "nats",
        "The least entropy that logits of norm s over T keys allow: log(1+(T−1)β) + "
        "s·√(T(T−1))·β/(1+(T−1)β), β = exp(−s·√(T/(T−1))).",
        "Zhai et al. 2023, Theorem 3.1",
        ("lower_bound",),
    ),
    Term(
        "entropy collapse",
        "",
        "",
        "A head's entropy falls below a floor and stays there; trainings that collapse often diverge.",
        "Zhai et al. 2023, arXiv 2303.06296",
        ("collapsed_heads",),
    ),
    Term(
        "σReparam",
        "Ŵ = γ·W / σ(W)",
        "",
        "A linear layer divided by its largest singular value, times one learned number: bounds "
        "the norm of the logits.",
        "Zhai et al. 2023, arXiv 2303.06296",
    ),
    Term(
        "sink mass",
        "",
        "fraction",
        "Attention on the first position, mean over queries.",
        "Xiao et al. 2023, arXiv 2309.17453",
        ("sink_mass",),
    ),
    Term(
        "induction score",
        "",
        "fraction",
        "On the token after an earlier copy of the current token: a head's mean weight, a "
        "feature's share of attribution.",
        "Olsson et al. 2022, arXiv 2209.11895",
        ("induction",),
    ),
    Term(
        "previous-token score", "", "fraction", "Mean weight on the position before the query.", "", ("previous_token",)
    ),
    Term(
        "duplicate-token score",
        "",
        "fraction",
        "Mean weight on other copies of the query's token.",
        "Wang et al. 2022, arXiv 2211.00593",
        ("duplicate_token",),
    ),
    Term("local mass", "", "fraction", "Mean weight within the local window.", "", ("local_mass",)),
    Term(
        "largest weight", "", "fraction", "A query's largest attention weight, mean over queries.", "", ("max_weight",)
    ),
    Term(
        "column mass",
        "",
        "queries",
        "Attention a token receives, summed over queries.",
        "Ding et al. 2023, arXiv 2304.03282",
    ),
)

PRUNING = (
    Term(
        "redundancy score",
        "S",
        "1 − cosine",
        "1 − E[cos(x, x + M(norm(x)))]: how little a module turns the residual stream; low is redundant.",
        "He et al. 2024, arXiv 2406.15786",
    ),
    Term(
        "block influence",
        "BI",
        "1 − cosine",
        "1 − E[cos(x before a block, x after it)].",
        "Men et al. 2024, arXiv 2403.03853",
    ),
    Term(
        "angular distance",
        "",
        "half turns",
        "arccos(cos)/π between the last token's residual stream before and after a run of blocks.",
        "Gromov et al. 2024, arXiv 2403.17887",
        ("distance",),
    ),
    Term(
        "Δ loss",
        "ΔCE",
        "nats",
        "Cross-entropy with a part ablated or dropped, less that of the whole model, on the same tokens.",
    ),
    Term("zero ablation", "", "", "z of a head, or a module's output, set to 0."),
    Term(
        "mean ablation",
        "",
        "",
        "It is set to its mean over a sample: pooled over all positions, or position by position.",
    ),
    Term(
        "resample ablation",
        "",
        "",
        "It is set to what it is in another, randomly drawn input.",
        "Chan et al. 2022, causal scrubbing",
    ),
)

VISION = (
    Term(
        "CLS, register",
        "",
        "",
        "Tokens in front of the patches that stand for no place in the image.",
        "Darcet et al. 2023, arXiv 2309.16588",
    ),
    Term(
        "ring",
        "",
        "patches",
        "All patches at one Chebyshev distance from the query patch.",
        "Li et al. 2023, arXiv 2303.13731",
        ("hop",),
    ),
    Term(
        "Jensen-Shannon divergence",
        "JS",
        "nats",
        "Between the class distributions with and without a head: mean of the two KL divergences to their average.",
        "Li et al. 2023, arXiv 2303.13731",
    ),
    Term(
        "attention rollout",
        "",
        "",
        "Product over layers of the head-averaged pattern plus the identity: a map of where CLS could have read.",
        "Abnar & Zuidema 2020, arXiv 2005.00928",
    ),
    Term(
        "content relevance",
        "",
        "fraction",
        "Share of the variance of a head's recentred maps that lies between images; near 0 the head ignores content.",
        "Li et al. 2023, arXiv 2303.13731",
        ("content_relevance",),
    ),
)

CIRCUITS = (
    Term(
        "logit difference",
        "",
        "logits",
        "Logit of the right answer less that of the wrong one, at the position that answers.",
        "Wang et al. 2022, arXiv 2211.00593",
    ),
    Term(
        "direct logit attribution",
        "DLA",
        "logits",
        "What a head or feature adds to a logit by itself, final norm frozen.",
        "Elhage et al. 2021",
        ("contribution",),
    ),
    Term(
        "activation patching",
        "",
        "metric",
        "A part's activation is taken from another prompt; the effect is metric(changed run) − metric(base run).",
        "Vig et al. 2020; Wang et al. 2022",
    ),
    Term(
        "faithfulness",
        "",
        "fraction",
        "Share of the metric a circuit keeps when everything outside it is ablated, beside random "
        "circuits of its size.",
        "Wang et al. 2022, arXiv 2211.00593",
    ),
    Term(
        "influence",
        "",
        "target",
        "What reaches the graph's target through a node, along all kept edges.",
        "Ameisen et al. 2025, transformer-circuits.pub",
    ),
)

STATISTICS = (
    Term(
        "interval",
        "",
        "",
        "95 %, over independent units (sequences, images, prompts): bootstrap-t for means and "
        "ratios, Agresti's for shares; none below eight units.",
        "docs/architecture.md",
    ),
    Term(
        "Benjamini-Hochberg q",
        "q",
        "probability",
        "The p-value corrected for testing many features: labels at q ≤ 0.05 are wrong in at most 5 % on average.",
        "Benjamini & Hochberg 1995",
        ("induction_q", "local_q", "long_range_q"),
    ),
    Term("Spearman correlation", "ρ", "", "Correlation of ranks, ties by their mean rank.", "", ("spearman",)),
)

SECTIONS: dict[str, tuple[Term, ...]] = {
    "Models and hooks": HOOKS,
    "Sparse autoencoders": SAES,
    "Attention": ATTENTION,
    "Redundancy and pruning": PRUNING,
    "Vision": VISION,
    "Circuits": CIRCUITS,
    "Statistics": STATISTICS,
}


@cache
def _by_column() -> dict[str, Term]:
    return {column: term for terms in SECTIONS.values() for term in terms for column in term.columns}


def tooltip(column: str) -> str:
    """The glossary's sentence for a column of that name, "" where it has none.

    >>> tooltip("l0")
    'Features with an activation above 0, mean over tokens. [features]'
    """
    term = _by_column().get(column)
    return term.tooltip if term else ""


def document() -> str:
    """docs/glossary.md."""
    parts = [
        "# Glossary\n\nEach term once, with its symbol, unit and source. Tables in the browser show the same sentences "
        "over their headings. Written by `make docs` from `data/glossary.py`."
    ]
    for title, terms in SECTIONS.items():
        rows = [f"## {title}", "", "| term | symbol | unit | meaning | source |", "|---|---|---|---|---|"]
        for term in terms:
            cells = (f"**{term.name}**", term.symbol, term.unit, term.meaning, term.source)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text_atomic(Path(sys.argv[1]), document())

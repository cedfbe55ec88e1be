"""Tables of a run of `explanations`."""

from __future__ import annotations

import pyarrow as pa

from attlas.analyses.common.columns import FEATURE, HEAD, LAYER, upper
from attlas.data.schema import TableSchema, column

_F = pa.float64()
SUBJECT = column("subject", pa.string(), "", "what notes call it: feature/SAE-RUN/746 or head/MODEL/3.0")
WHERE = (SUBJECT, FEATURE, LAYER, HEAD)
TEST = column(
    "test",
    pa.string(),
    "",
    "detection: excerpts it fires on among others; fuzzing: excerpts it fires on, the right tokens marked or others",
)
EXPLANATIONS = TableSchema(
    "explanations",
    "one feature or head that was to be explained",
    (
        *WHERE,
        column("label", pa.string(), "", "what the explainer calls it; empty where it has none"),
        column(
            "outcome",
            pa.string(),
            "",
            "scored; labelled (the budget ended before its scores); lender (labelled to lend its label to the control); few "
            "excerpts; no label (the answer held none); not asked (the budget)",
        ),
        column("n_shown", pa.int32(), "excerpts", "it was labelled from"),
    ),
)
SCORES = TableSchema(
    "explanation_scores",
    "one feature or head and one test of its label",
    (
        *WHERE,
        TEST,
        column("accuracy", _F, "fraction", "balanced accuracy of the answers; 0.5 is chance"),
        column("low", _F, "fraction", "its 95 % interval over excerpts (Agresti and Coull), lower end"),
        upper("fraction"),
        column("n_excerpts", pa.int32(), "excerpts", "held out, half of them right"),
        column("n_unread", pa.int32(), "excerpts", "whose answer could not be read; these count as “no”"),
        column("control_label", pa.string(), "", "control: the label of another one, on the same excerpts"),
        column("control_accuracy", _F, "fraction", "control: balanced accuracy with that; null without a control"),
        column("gain", _F, "fraction", "accuracy less the control's"),
        column("gain_low", _F, "fraction", "its 95 % interval over excerpts, paired (Agresti and Min), lower end"),
        column("gain_high", _F, "fraction", "its upper end"),
    ),
)
EXCERPTS = TableSchema(
    "explanation_excerpts",
    "one held-out excerpt of a test",
    (
        *WHERE,
        TEST,
        column("excerpt", pa.string(), "", "the text; of fuzzing with its marks"),
        column("truth", pa.bool_(), "", "whether yes is right"),
        column("said", pa.bool_(), "", "what the explainer answered with the label; null where that could not be read"),
        column("said_control", pa.bool_(), "", "with the other's label"),
    ),
)
ANSWERS = TableSchema(
    "explanation_answers",
    "one request",
    (
        column("request_step", pa.string(), "", "label, or the test, and of what"),
        column("instructions", pa.string(), "", "the system's part of the prompt"),
        column("prompt", pa.string(), "", "the rest of it"),
        column("answer", pa.string(), "", "as it came"),
        column("kept", pa.bool_(), "", "whether it had been answered before and was not asked again"),
    ),
)
SCHEMAS = (EXPLANATIONS, SCORES, EXCERPTS, ANSWERS)

"""Every kind of finding: what it says, what to do, and whether a run may start with it."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.records.audit import Finding, Severity


@dataclass(frozen=True)
class Kind:
    """`said`: with {n} for the count. `limit`: share of the examples up to which it only warns."""

    severity: Severity
    said: str
    fix: str
    limit: float = 0.0


_LONGER = "raise data.sequence_length"
KINDS: dict[str, Kind] = {
    "nothing_learnt": Kind(
        "refuse", "{n} examples have nothing to learn in them",
        "look at what data show prints of them, and at roles, columns and data.sequence_length",
    ),
    "same_answers": Kind(
        "refuse", "{n} pairs hold the same answer twice, as the tokenizer or a cut left them",
        f"leave those rows out, or {_LONGER}",
    ),
    "answer_cut": Kind(
        "refuse", "the answers of {n} examples are cut off",
        f"{_LONGER} (or task.target_tokens), or leave those rows out",
    ),
    "end_missing": Kind(
        "refuse", "{n} examples do not end what the model is to say with a token that ends it",
        "take a template that writes one, or the model will never stop",
    ),
    "double_begin": Kind(
        "refuse", "{n} examples begin with the token that begins a text twice",
        "take it out of the data or of the template",
    ),
    "words_lost": Kind(
        "refuse", "{n} sentences have words of which the tokenizer leaves nothing, labels and all",
        "correct those words",
    ),
    "answer_lost": Kind(
        "refuse", "the answers of {n} questions are in no window",
        f"raise task.stride to the length of the longest answer, or {_LONGER}",
    ),
    "overlap": Kind(
        "refuse", "{n} held-out examples are trained on as well",
        "take them out of one of the two",
    ),
    "duplicates": Kind(
        "refuse", "{n} examples repeat an earlier one",
        "leave the copies out", limit=0.01,
    ),
    "contradictions": Kind(
        "refuse", "{n} examples have the inputs of an earlier one and another label",
        "decide which is right", limit=0.01,
    ),
    "empty_class": Kind(
        "refuse", "{n} labels have no example to train on", "take them out of data.labels",
    ),
    "single_example": Kind(
        "refuse", "{n} labels have one example only", "add examples, or leave that label out",
    ),
    "rare_tag": Kind("warn", "{n} tags occur once only", "they will hardly be learnt"),
    "one_class": Kind(
        "refuse", "all {n} examples have the same label", "is this the column of labels?",
    ),
    "unknown_label": Kind(
        "refuse", "{n} examples have a label beyond the model's outputs", "prepare the data again",
    ),
    "unknown_tokens": Kind(
        "refuse", "{n} examples hold more unknown tokens than known ones",
        "is this the model's tokenizer?", limit=0.01,
    ),
    "beyond_vocabulary": Kind(
        "refuse", "{n} examples hold ids that the model has no embedding for",
        "take the model's own tokenizer",
    ),
    "template_mismatch": Kind(
        "refuse", "the chat template writes {n} marks that the tokenizer does not know",
        "take the template of this tokenizer, or add those tokens to it",
    ),
    "packing": Kind(
        "refuse", "{n} packed rows do not keep their examples apart", "prepare the data again",
    ),
    "near_overlap": Kind(
        "warn", "{n} held-out examples are nearly the same as one that is trained on",
        "scores on them say little",
    ),
    "same_input": Kind(
        "warn", "{n} held-out examples have the inputs of one that is trained on",
        "scores on them say little",
    ),
    "source_cut": Kind("warn", "the sources of {n} examples are cut", _LONGER),
    "words_cut": Kind("warn", "{n} sentences are cut, and words have no label", _LONGER),
    "answers_left_out": Kind(
        "warn", "{n} conversations end before their last answer", _LONGER,
    ),
    "answer_inexact": Kind(
        "warn", "{n} answers begin or end within a token", "what is predicted for them is longer",
    ),
    "misaligned": Kind(
        "warn", "what is learnt of {n} examples begins or ends within a token",
        "put a space or a special token there in the template",
    ),
    "cut": Kind("warn", "{n} examples were longer than a row", _LONGER),
}  # fmt: skip


def finding(
    kind: str,
    count: int,
    *,
    of: int,
    places: tuple[str, ...] = (),
    shown: tuple[str, ...] = (),
) -> Finding:
    """`of`: how many there are in all, which some limits are a share of."""
    known = KINDS[kind]
    mild = known.limit > 0 and count <= known.limit * of
    said = known.said.replace("{n}", f"{count:,}")
    severity: Severity = "warn" if mild else known.severity
    return Finding(kind, severity, count, said, known.fix, places, shown)

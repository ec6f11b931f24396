"""A run without held-out rows: why it has none, and which setting would have made some."""

from __future__ import annotations

from trainer.plan import RunPlan

MORE_DOCUMENTS = "more documents (a long text: document=paragraph in its source)"


def why_none_is_held_out(plan: RunPlan) -> str:
    """To follow "run NAME ..."."""
    fraction = plan.config.data.held_out_fraction
    if plan.config.task.data == "examples":
        return f"holds no example out (data.held_out_fraction={fraction:g}, or data.held_out)"
    if not fraction:
        return "held no text out (data.held_out_fraction=0)"
    tokens = sum(store.held_out_tokens for store in plan.stores)
    return (
        f"has {tokens:,} held-out tokens, not enough for one row: its corpus has too few documents "
        f"for data.held_out_fraction={fraction:g}"
    )


def larger_fraction(plan: RunPlan) -> str:
    """The override that would hold some out, in another run: this one's rows are settled."""
    fraction = plan.config.data.held_out_fraction
    value = f"{min(0.5, 10 * fraction):g}" if fraction else "0.01"
    return f"data.held_out_fraction={value}"


def none_held_out_text(plan: RunPlan) -> str:
    """What is said once, where training begins."""
    more = f"{MORE_DOCUMENTS} or " if plan.config.data.held_out_fraction else ""
    return (
        f"nothing will be evaluated: {plan.config.run.name} {why_none_is_held_out(plan)}; that "
        f"takes another run.name with {more}{larger_fraction(plan)} (evals.held_out_rows=0: "
        "without this line)"
    )

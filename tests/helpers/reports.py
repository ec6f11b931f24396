"""Reports as the loop would make them."""

from __future__ import annotations

from typing import Any

from trainer.reports import EvalReport, SaveReport, StepReport, UploadReport


def step_report(step: int, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step,
        "loss": 5.0 / step,
        "learning_rate": 1e-3,
        "grad_norm": 1.25,
        "applied": True,
        "terms": 90,
        "tokens": 100,
        "row_tokens": 128,
        "tokens_seen": 100 * step,
        "step_s": 0.5,
        "data_s": 0.01,
        "forward_s": 0.2,
        "backward_s": 0.25,
        "update_s": 0.04,
        "tokens_per_second": 200.0,
        "mfu": 0.4,
        "memory_bytes": 2**30,
    }
    return StepReport(**values | changes)


def eval_report(step: int) -> EvalReport:
    values = {"loss": 3.0, "perplexity": 20.1}
    return EvalReport(step=step, values=values, seconds=1.5, samples=(("def ", "f(x):"),))


def save_report(step: int, **changes: Any) -> SaveReport:
    values: dict[str, Any] = {
        "step": step,
        "succeeded": True,
        "stall_s": 0.2,
        "bytes": 4096,
        "path": f"checkpoints/step-{step:08d}",
    }
    return SaveReport(**values | changes)


def upload_report(step: int, **changes: Any) -> UploadReport:
    values: dict[str, Any] = {"step": step, "succeeded": True, "bytes": 4096, "seconds": 1.5}
    return UploadReport(**values | {"url": "s3://b/run"} | changes)

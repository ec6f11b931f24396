"""What a run is called at places that know only lower case letters, digits and dashes. Pure."""

from __future__ import annotations

import re

from trainer.plan import RunPlan

_LONGEST = 24  # characters of the run's own name


def cluster_name(plan: RunPlan) -> str:
    """Of machines that belong to the run. At most 34 characters, the first is a letter."""
    slug = _slug(plan.config.run.name)[:_LONGEST].strip("-")
    return "-".join(part for part in ("lh", slug, _slug(plan.run_id)[:6]) if part)


def job_name(plan: RunPlan) -> str:
    """Of one submission: KubeRay takes 47 characters at most."""
    return f"{cluster_name(plan)}-a{plan.attempt}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

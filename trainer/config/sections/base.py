"""What every section is: closed (unknown keys refused) and frozen."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Defaults live in conf/*.yaml, not here, unless no user would ever change them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # run.name=2026 is a name
    )

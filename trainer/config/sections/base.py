"""What every section is: closed (unknown keys refused) and frozen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

# Of every number whose field sets no limit of its own: nothing is counted in more, and products of
# some of them stay within the 64 bits that a step, a sample or a time-out has elsewhere.
MOST = 10**12

# A class of the user's own.
Target = Annotated[
    str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", examples=["package.module:Class"])
]


class Section(BaseModel):
    """Defaults live in conf/*.yaml, not here, unless no user would ever change them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # run.name=2026 is a name
    )

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, int | float) or -MOST <= value <= MOST:
            return value
        rules = cls.model_fields[str(info.field_name)].metadata
        if any(getattr(rule, name, None) is not None for rule in rules for name in ("le", "lt")):
            return value
        raise PydanticKnownError("less_than_equal", {"le": MOST})

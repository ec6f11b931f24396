"""A `key=value` that Hydra cannot read, and how the same is typed so that it is accepted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from launch.settings.choices import Folders
from trainer.config.fields import example, is_name, takes_number
from trainer.config.names import nearest
from trainer.errors import ConfigError, Problem

_NO_SETTING = "is no setting; settings are written key=value"


def without_key(text: str) -> Problem:
    """`=3`, which Hydra reads as a value for nothing."""
    return Problem(repr(text), _NO_SETTING, f"steps.total{text.lstrip('+~')}")


def unreadable(text: str, error: Exception, folders: Folders) -> Problem:
    if "=" not in text:
        fix = f"{text}=..." if text.replace(".", "").replace("_", "").isalnum() else ""
        return Problem(repr(text), _NO_SETTING, fix)
    key, _, value = text.partition("=")
    key = key.lstrip("+~")
    reason = str(error).splitlines()[0]
    fix = _retyped(key, value, folders)
    return Problem(key, f"cannot read the value ({reason})", fix)


def epochs_or_total(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """A `steps.total` that is typed stands for the epochs of a recipe or of the run's settings.

    Raises: ConfigError if both are typed.
    """
    typed = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    if "steps.total" not in typed:
        return
    if typed.get("steps.epochs", "null") != "null":
        what = "epochs say how many steps there are, and so does steps.total: give one of them"
        raise ConfigError([Problem("steps.epochs", what, "leave steps.total out")])
    if values["steps"].get("epochs") is not None:
        values["steps"]["epochs"] = None


def _retyped(key: str, value: str, folders: Folders) -> str:
    if folders.is_group(key):
        choices = folders.choices(key)
        return f"{key}={nearest(value, choices) or choices[0]}"
    path = key.split(".")
    if is_name(path, {}):
        return f"{key}={example(path, {}, given=value)}"
    if takes_number(path, {}):
        return f"{key}={example(path, {})}"
    return shlex.quote(f"{key}={_quoted(value)}")


def _quoted(value: str) -> str:
    """As Hydra reads text with any letters in it; a list, also one left open, by its entries."""
    if value.startswith("["):
        value = f"{value.removesuffix(']')}]"
        return f"[{','.join(_quoted(v.strip()) for v in value[1:-1].split(',') if v.strip())}]"
    bare = value.strip("\"'")
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', bare)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'

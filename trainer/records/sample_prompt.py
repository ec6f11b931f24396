"""The prompt that a hint shows: a text like those the model was trained on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_OF_CODE = "def "  # as conf/evals/default.yaml has it, for the standard library's sources
_NEUTRAL = "The"
_WORDS = 5


def typed_prompt(config: Mapping[str, Any]) -> str:
    """Quoted for a shell. The first words of evals.sample_prompt; neutral if that is not set, or
    is the one for code and the run reads something else. `config`: of a plan, as plain values.
    """
    given = str(config.get("evals", {}).get("sample_prompt", ""))
    words = given.split(maxsplit=_WORDS)
    if not words:
        return shlex.quote(_NEUTRAL)
    sources = config.get("data", {}).get("sources", {}).values()
    if given == _OF_CODE and all(source.get("kind") != "stdlib" for source in sources):
        return shlex.quote(_NEUTRAL)
    # As it is where it is short: a space at its end belongs to it.
    is_short = len(words) <= _WORDS and given.isprintable()
    return shlex.quote(given if is_short else " ".join(words[:_WORDS]))

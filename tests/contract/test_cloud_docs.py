"""The worked examples of docs/cloud.md are settings that exist and can be rendered."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.backends.table import backend_of
from launch.settings.asked import from_overrides
from tests.helpers.cloud import plan_for

_PAGE = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text(encoding="utf-8")
_BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL))
_LINES = _BLOCKS.replace("\\\n", " ").splitlines()
EXAMPLES = [shlex.split(line)[2:] for line in _LINES if line.startswith("longhaul train")]


def test_there_is_one_of_each() -> None:
    kinds = {word for words in EXAMPLES for word in words if word.startswith("launch=")}
    assert kinds == {"launch=sky", "launch=kuberay", "launch=ray_up"}


@pytest.mark.parametrize("words", EXAMPLES, ids=lambda words: words[0])
def test_an_example_can_be_rendered(words: list[str]) -> None:
    settings = [word for word in words if not word.startswith("--")]
    plan = plan_for(from_overrides(settings))
    assert backend_of(plan.config.launch.kind).render(plan, run_folder="runs/mine").files

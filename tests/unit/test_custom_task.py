"""Tasks of a user's own package: trusted by name, and every way they can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config.sections.tasks import CustomTask
from trainer.errors import ConfigError
from trainer.tasks.custom import load_task

_SOURCE = """
class Good:
    def __init__(self, scale=1.0):
        self.scale = scale
    def loss_sum(self, model, batch): ...
    def score(self, model, batch): ...

class Half:
    def loss_sum(self, model, batch): ...

def function(): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_tasks.py").write_text(_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_tasks", raising=False)
    return "their_tasks"


def _section(target: str, **settings: Any) -> CustomTask:
    return CustomTask(kind="custom", target=target, settings=settings)


def test_a_trusted_class_is_made_with_its_settings(package: str) -> None:
    task = load_task(_section("their_tasks:Good", scale=2.0), trust=[package])
    assert task.scale == 2.0  # type: ignore[attr-defined]


def test_nothing_is_imported_that_is_not_trusted(package: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)run\.trust does not name.*run\.trust=\[mine,their"):
        load_task(_section("their_tasks:Good"), trust=["mine"])
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("target", "settings", "said"),
    [
        ("their_tasks:Absent", {}, "their_tasks has no class Absent"),
        ("their_tasks:function", {}, "their_tasks has no class function"),
        ("their_tasks:Half", {}, "has no method score"),
        ("their_tasks:Good", {"size": 1}, r"does not take these task\.settings"),
        ("their_tasks.more:Good", {}, r"their_tasks\.more cannot be imported"),
    ],
)
def test_what_is_no_task_is_refused(
    package: str, target: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_task(_section(target, **settings), trust=[package])

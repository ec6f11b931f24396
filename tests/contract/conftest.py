"""Faults that a test plans for the processes it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.background import Drill
from trainer.faultpoints import ENVIRONMENT


@pytest.fixture(autouse=True)
def _killed_writers_are_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not wait for one that the kernel holds; a test waits until none is left."""
    monkeypatch.setattr("trainer.checkpoint.link._REAP_S", 60.0)


@pytest.fixture
def drill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Drill:
    """Plan faults for writers that are started from here on; `@` is a token of their own."""

    def plan(text: str) -> None:
        monkeypatch.setenv(ENVIRONMENT, text.replace("@", str(tmp_path / "token")))

    return plan

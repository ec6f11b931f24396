"""The table of groups: a long name of a score keeps its column apart."""

from __future__ import annotations

import pytest

from trainer.commands.groups import GroupScores


def test_each_column_is_as_wide_as_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"terms": 3.0, "matthews": 0.5, "relation_f1_any_direction": 0.25}
    GroupScores("about", {"Berlin": scores, "Rome": {**scores, "matthews": 0.75}}).show()
    _, names, berlin, rome, gap = capsys.readouterr().out.splitlines()
    assert names.split() == ["terms", "matthews", "relation_f1_any_direction"]
    assert berlin.split() == ["Berlin", "3", "0.5000", "0.2500"]
    assert rome.split() == ["Rome", "3", "0.7500", "0.2500"]
    assert gap.split() == ["gap", "0.2500", "0.0000"]
    assert len({len(line) for line in (names, berlin, rome, gap)}) == 1

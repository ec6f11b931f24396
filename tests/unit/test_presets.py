"""Every file of conf/ says what it is for, and what each of its settings means."""

from __future__ import annotations

from pathlib import Path

import yaml

from launch.settings.choices import Folders

CONF = Path(__file__).parents[2] / "conf"
FOLDERS = Folders.find()


def test_every_choice_says_when_to_take_it() -> None:
    for path in CONF.rglob("*.yaml"):
        first = next(
            line for line in path.read_text().splitlines() if line != "# @package _global_"
        )
        if path.name.startswith("_"):
            assert first.startswith("# What every "), path
        elif path.name != "train.yaml":
            assert first.startswith("# Take it "), path


def test_every_setting_has_a_comment() -> None:
    for path in CONF.rglob("*.yaml"):
        if path.parent.name in ("experiment", "debug"):
            continue
        bare = [
            line
            for line in path.read_text().splitlines()
            if line and "#" not in line and not line.lstrip().startswith(("-", "defaults:"))
        ]
        allowed = ("kind:", "split:", "weight:", "format:", "project:", "tags:")
        wrong = [
            line
            for line in bare
            if not line.lstrip().startswith(allowed) and not line.rstrip().endswith(":")
        ]
        assert not wrong, (path, wrong)


def test_every_group_stands_in_the_table_of_contents() -> None:
    listed = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    groups = {next(iter(entry)) for entry in listed if isinstance(entry, dict)}
    assert groups == {group for group in FOLDERS.groups() if "/" not in group}

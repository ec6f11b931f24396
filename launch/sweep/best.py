"""The best trials of a sweep, and each as a recipe: conf/experiment/best-NAME.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.cloud.yaml_text import yaml_text
from launch.settings.choices import Folders
from launch.sweep.grammar import as_settings
from launch.sweep.journal import Trial
from trainer.config.sections.sweep import SweepSection


def best_trials(trials: Mapping[int, Trial], goals: Sequence[str]) -> list[Trial]:
    """Those that no other beats in every metric; one metric has one best, the first of equals."""
    finished = [t for _, t in sorted(trials.items()) if t.state == "finished"]
    costs = {t.number: _costs(t, goals) for t in finished}
    if len(goals) == 1:
        return [min(finished, key=lambda t: (costs[t.number], t.number))] if finished else []
    return [
        t for t in finished if not any(_beats(costs[o.number], costs[t.number]) for o in finished)
    ]


def _costs(trial: Trial, goals: Sequence[str]) -> tuple[float, ...]:
    return tuple(v if g == "min" else -v for v, g in zip(trial.values, goals, strict=True))


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def write_recipes(
    folder: Path,
    name: str,
    best: Sequence[Trial],
    *,
    fixed: Sequence[str],
    section: SweepSection,
    folders: Folders,
) -> list[Path]:
    """In `folder`/experiment; what earlier bests left there under these names is replaced."""
    place = folder / "experiment"
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for trial in best:
        suffix = "" if len(section.metrics) == 1 else f"-{trial.number:04d}"
        path = place / f"best-{name}{suffix}.yaml"
        path.write_text(recipe(trial, fixed=fixed, section=section, folders=folders), "utf-8")
        written.append(path)
    return written


def recipe(trial: Trial, *, fixed: Sequence[str], section: SweepSection, folders: Folders) -> str:
    """Choices first, then values, as Hydra composes them. Pure, but for which groups there are."""
    values: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for key, value in as_settings((*fixed, *trial.overrides)).items():
        if folders.is_group(key):
            choices[key] = value
        elif key not in ("run.name", "run.root"):
            _put(values, key.split("."), value)
    based_on = choices.pop("experiment", None)  # a recipe within this one, below its values
    defaults = [based_on] if based_on else []
    defaults += [{f"override /{group}": choice} for group, choice in choices.items()]
    said = ", ".join(f"{m} {v:.6g}" for m, v in zip(section.metrics, trial.values, strict=True))
    document = ({"defaults": [*defaults, "_self_"]} if defaults else {}) | values
    about = f"Take it as the best of a sweep: trial {trial.number}, {said}."
    if trial.parent:  # its settings are those of its last steps
        about += f" It went on from trial {trial.parent}, with other settings from there on."
    text = yaml_text(document, about=about) if document else f"# {about}\n"
    return f"# @package _global_\n{text}"


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = value

"""The one door to Hydra: conf/ and overrides in, a plain mapping and its provenance out.

Hydra chooses files and merges them; it judges nothing. Every `key=value` is handed to it as
`++key=value`, so that unknown names reach the schema, which knows the nearest right one. Nothing
here creates folders or touches logging: there is no `hydra.main`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from launch.settings.aliases import too_large
from launch.settings.choices import Folders
from launch.settings.provenance import Assignment, Layer, provenance
from launch.settings.typed import epochs_or_total, unreadable, without_key
from trainer.config import explain
from trainer.config.names import nearest, nearest_group, nearest_setting, or_list
from trainer.errors import ConfigError, Problem, Refused
from trainer.records.redact import Redactor, redactor_of

_LACKS = "has no value and needs one"


@dataclass(frozen=True)
class Composed:
    """`values` nested and plain; `provenance`: dotted leaf -> who set it, empty unless traced."""

    values: dict[str, Any]
    provenance: dict[str, str]


def compose(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    config_name: str = "train",
    trace: bool = False,
    may_lack: bool = False,
) -> Composed:
    """Compose conf/ (and the user's folders) with overrides as Hydra users write them.

    `trace` also finds out who set each setting, for `why`; it costs a tenth of a second.
    `may_lack`: a value that is missing stays "???" instead of being a problem.
    Raises: ConfigError with every problem of the command line; when there is one, the schema's
    problems with the rest of it are in the same error. Refused if a folder is not there.
    """
    folders = Folders.find(config_dirs)
    request, problems = _read_overrides(overrides, folders, config_name)
    composed, more = _compose(request, folders, config_name, trace=trace)
    if may_lack:
        more = [p for p in more if p.what != _LACKS]
    unread = {p.where for p in problems}
    problems += [p for p in more if p.where not in unread]
    redactor = redactor_of(os.environ)
    if composed is not None:
        problems += _secrets(composed.values, redactor)
    if problems:
        taken = {p.where for p in problems}
        is_a_run = config_name == "train"
        also = explain.problems(composed.values) if composed is not None and is_a_run else []
        problems += [p for p in also if not _covered(p.where, taken)]
        raise ConfigError([_hidden(p, redactor) for p in problems])
    assert composed is not None
    epochs_or_total(composed.values, overrides)
    return composed


def combinations(overrides: Sequence[str]) -> list[list[tuple[str, bool]]]:
    """Every run that these overrides ask for: its own overrides, each with whether it is one of
    several values. Hydra's grammar: a=1,2, choice(...), range(...); the last one varies fastest.

    Raises: ConfigError for what cannot be counted up. What cannot be read is left to `compose`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    rows: list[list[tuple[str, bool]]] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            rows.append([(text, False)])
            continue
        if not override.is_sweep_override():
            rows.append([(text, False)])
        elif not override.is_discrete_sweep() or isinstance(override.value(), Glob):
            key, _, value = text.partition("=")
            what = f"{value} does not say which values; several runs need each by name"
            problems.append(Problem(key, what, f"{key}=1,2 or {key}=range(1,4)"))
        else:
            key = text.partition("=")[0]
            rows.append([(f"{key}={value}", True) for value in override.sweep_string_iterator()])
    if problems:
        raise ConfigError(problems)
    return [list(one) for one in product(*rows)]


def _secrets(values: dict[str, Any], redactor: Redactor) -> list[Problem]:
    """Settings are written down in many places; a key in one of them would be as well."""
    what = "holds a key or a password, and every setting is kept with the run"
    fix = "leave it out: keys belong into the environment, where those who need them look"
    return [Problem(where, what, fix) for where in dict.fromkeys(redactor.where_secret(values))]


def _hidden(problem: Problem, redactor: Redactor) -> Problem:
    texts = (problem.where, problem.what, problem.fix)
    return Problem(*(redactor.text(text) for text in texts))


@dataclass(frozen=True)
class _Request:
    """What Hydra is asked for, and what the user typed for it."""

    hydra_overrides: tuple[str, ...]
    assignments: tuple[Assignment, ...]  # of values
    choices: dict[str, str]  # group -> the override that chose it


def _read_overrides(
    texts: Sequence[str], folders: Folders, config_name: str
) -> tuple[_Request, list[Problem]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    asked: list[str] = []
    assignments: list[Assignment] = []
    choices: dict[str, str] = {}
    problems: list[Problem] = []
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException as e:
            problems.append(unreadable(text, e, folders))
            continue
        wrong = _misplaced(override, config_name) or _misuse(text, override, folders)
        if wrong is not None:
            problems.append(wrong)
        elif folders.is_group(override.key_or_group):
            choices[override.key_or_group] = text
            asked.append(_group_override(text, override))
        else:
            asked.append(text if override.is_delete() else "++" + text.lstrip("+"))
            if not override.is_delete():
                assignments.append(Assignment(override.key_or_group, override.value(), text))
    return _Request(tuple(asked), tuple(assignments), choices), problems


def _group_override(text: str, override: Any) -> str:
    """`+experiment=x` and `experiment=x` mean the same: both groups stand in train.yaml."""
    return text if override.is_delete() else text.lstrip("+")


def _misplaced(override: Any, config_name: str) -> Problem | None:
    """`train sweep=tpe`: a run's settings have no such section."""
    key = str(override.key_or_group)
    if config_name == "train" and key.partition(".")[0] == "sweep":
        return Problem(key, "is of `longhaul sweep`, and one run has no part of it", "leave it out")
    return None


def _misuse(text: str, override: Any, folders: Folders) -> Problem | None:
    """What Hydra would accept, or refuse in its own words, and cannot be meant."""
    key = override.key_or_group
    if not key:
        return without_key(text)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return Problem(key, "Hydra only composes the configuration here and has no settings", "")
    if override.is_sweep_override():
        value = text.split("=", 1)[1]
        what = f"{value} asks for several runs; one run takes one value (train -m starts several)"
        return Problem(key, what, _one_of(text))
    if override.is_delete():
        return None
    value = override.value()
    if folders.is_group(key):
        return _wrong_choice(key, value, folders)
    as_group = key.replace(".", "/")
    if "." in key and folders.is_group(as_group) and not isinstance(value, dict):
        return Problem(key, "is a group of choices, written with a slash", f"{as_group}={value}")
    return _misspelt_group(key, value, folders)


def _misspelt_group(key: str, value: Any, folders: Folders) -> Problem | None:
    """`engin=zero2` would reach the schema as a setting, which knows no choices."""
    if not isinstance(value, str):
        return None
    groups = {group: folders.choices(group) for group in folders.groups()}
    near = nearest_group(key, groups, value=value)
    if near is None or f"{near}/".startswith(f"{key}/"):
        return None
    choice = nearest(value, groups[near]) or groups[near][0]
    what = f"there is no group of choices {key!r}; did you mean {near}?"
    return Problem(key, what, f"{near}={choice}")


def _wrong_choice(group: str, value: Any, folders: Folders) -> Problem | None:
    choices = folders.choices(group)
    if value is None or (isinstance(value, str) and value in choices):
        return None
    if isinstance(value, list) and all(v in choices for v in value):
        return None
    if not isinstance(value, str | int | float):
        return Problem(group, f"takes the name of a choice, not {value!r}", f"{group}={choices[0]}")
    near = nearest(str(value), choices)
    fix = f"{group}={near}" if near else f"{group}={choices[0]}"
    return Problem(group, f"there is no choice {str(value)!r}; there is {or_list(choices)}", fix)


def _one_of(text: str) -> str:
    key, _, value = text.partition("=")
    return f"{key}=..." if "(" in value else f"{key}={value.split(',')[0]}"


def _compose(
    request: _Request, folders: Folders, config_name: str, *, trace: bool
) -> tuple[Composed | None, list[Problem]]:
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import ConfigCompositionException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    from launch.settings.conf_source import NOT_HYDRAS_OWN, read_conf_quickly

    if large := too_large(folders.extra):
        return None, large
    search = ",".join(f"'file://{_quoted(folder)}'" for folder in folders.extra)
    overrides = [*request.hydra_overrides, *NOT_HYDRAS_OWN]
    if search:
        overrides.append(f"hydra.searchpath=[{search}]")
    read_conf_quickly()
    try:
        with initialize_config_dir(str(folders.main), version_base="1.3"):
            config = hydra_compose(config_name, overrides=overrides)
            layers = _layers(config_name, overrides) if trace else []
    except MissingConfigException as e:
        return None, [_missing_file(e, folders)]
    except (ConfigCompositionException, OmegaConfBaseException, ValueError) as e:
        return None, [Problem("configuration", _first_lines(e), "")]
    except yaml.YAMLError as e:
        return None, [Problem("configuration", f"a YAML file cannot be read: {_one_line(e)}", "")]
    except RecursionError:
        what = "a YAML file refers to itself, or its brackets are nested too deep"
        return None, [Problem("configuration", what, "")]
    values, problems = _plain(config)
    if not trace:
        return Composed(values, {}), problems
    known = provenance(layers, request.assignments, request.choices, folders=folders)
    leaves = {key for key, _ in _settings(values)}
    return Composed(values, {k: v for k, v in known.items() if k in leaves}), problems


def _layers(config_name: str, overrides: list[str]) -> list[Layer]:
    """The files that Hydra merged, in order: later ones win."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    found = loader.compute_defaults_list(config_name, overrides, RunMode.RUN)
    return [
        Layer(str(d.config_path), d.package or "")
        for d in found.defaults
        if d.config_path and not str(d.config_path).startswith("hydra/")
    ]


def _missing_file(error: Any, folders: Folders) -> Problem:
    wanted = str(error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = wanted.rpartition("/")
    if folders.is_group(group):
        problem = _wrong_choice(group, name, folders)
        if problem is not None:
            return problem
    return Problem(wanted or "configuration", _first_lines(error), "")


def _plain(config: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Resolve every interpolation; report those that cannot be, and every `???`, by name."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    raw: Any = OmegaConf.to_container(config, resolve=False)
    problems: list[Problem] = []
    for key, value in list(_items(raw)):
        if value == "???":
            problems.append(Problem(key, _LACKS, f"{key}=..."))
        elif isinstance(value, str) and ("${now:" in value or "${hydra:" in value):
            what = f"{value} would be another value each time; a run's settings are its identity"
            problems.append(Problem(key, what, f"{key}=..."))
        elif isinstance(value, str) and "${" in value:
            try:
                resolved = OmegaConf.select(config, key, throw_on_missing=True)
                if OmegaConf.is_config(resolved):
                    resolved = OmegaConf.to_container(resolved, resolve=True, throw_on_missing=True)
                _set(raw, key, resolved)
            except InterpolationToMissingValueError:
                problems.append(Problem(key, _LACKS, f"{key}=..."))
            except OmegaConfBaseException as e:
                what = f"{value} cannot be resolved ({_first_lines(e)})"
                problems.append(Problem(key, what, f"{key}=..."))
    return raw, problems


def _items(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted path; elements of lists are leaves too ('run.trust.0')."""
    if isinstance(values, dict) and (values or not prefix):
        for key, value in values.items():
            yield from _items(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and values:
        for i, value in enumerate(values):
            yield from _items(value, f"{prefix}.{i}")
    else:
        yield prefix, values


def _set(values: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        values = values[int(name)] if isinstance(values, list) else values[name]
    values[int(last) if isinstance(values, list) else last] = value


def _covered(where: str, taken: set[str]) -> bool:
    return any(where == t or where.startswith(t + ".") for t in taken)


def _quoted(folder: Path) -> str:
    return str(folder).replace("\\", "\\\\").replace("'", "\\'")


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def why(composed: Composed, key: str) -> str:
    """Who set a setting, or all settings of a section; `composed` was traced.

    Raises: Refused for an unknown name.
    """
    known = composed.provenance
    key = key.replace("/", ".")  # a group, as it is chosen
    keys = [k for k in known if k == key or k.startswith(key + ".")]
    if not keys:
        sections = {k[:i] for k in known for i, letter in enumerate(k) if letter == "."}
        names = [*sorted(sections), *known]
        near = nearest_setting(key, names) or nearest(key, names)
        hint = f"; did you mean {near}?" if near else ""
        raise Refused(f"--why: there is no setting {key!r} in this configuration{hint}")
    values = dict(_settings(composed.values))
    return "\n".join(f"{k} = {_value_or_lack(values[k])}\n    {known[k]}" for k in keys)


def _value_or_lack(value: Any) -> str:
    return f"???   ({_LACKS})" if value == "???" else repr(value)


def _settings(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings with their values; a list is one setting."""
    if isinstance(values, dict) and (values or not prefix):
        for key, value in values.items():
            yield from _settings(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values

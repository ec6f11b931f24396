"""A task of the user's own package, named by import path and admitted by `run.trust`."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import NoReturn

from trainer.config.sections.tasks import CustomTask
from trainer.errors import ConfigError, Problem
from trainer.tasks.base import Task

_METHODS = ("loss_sum", "score")


def load_task(section: CustomTask, *, trust: Collection[str]) -> Task:
    """The task `package.module:Class`, made with `task.settings` as keyword arguments.

    Importing runs the package's code, so nothing is imported that `run.trust` does not name.
    Raises: ConfigError.
    """
    module_name, _, class_name = section.target.partition(":")
    package = module_name.partition(".")[0]
    if package not in trust:
        _refuse(
            f"{section.target} is code of package {package!r}, which run.trust does not name",
            f"run.trust=[{','.join([*trust, package])}]",
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        _refuse(f"{module_name} cannot be imported: {e}", "install it, or set PYTHONPATH")
    made = getattr(module, class_name, None)
    if not isinstance(made, type):
        _refuse(f"{module_name} has no class {class_name}", "")
    absent = [m for m in _METHODS if not callable(getattr(made, m, None))]
    if absent:
        _refuse(f"{section.target} has no method {absent[0]}: see trainer/tasks/base.py", "")
    try:
        task: Task = made(**section.settings)
    except TypeError as e:
        _refuse(f"{section.target} does not take these task.settings: {e}", "")
    return task


def _refuse(what: str, fix: str) -> NoReturn:
    raise ConfigError([Problem("task.target", what, fix)])

"""Where the nodes of an attempt are, by the settings in its plan."""

from __future__ import annotations

from collections.abc import Mapping

from launch.driving.nodes import Nodes
from trainer.errors import RunFolderError
from trainer.plan import plan_of_attempt
from trainer.records.run_files import AttemptFiles


def place_of(files: AttemptFiles) -> tuple[Nodes, Mapping[str, str]]:
    """(the nodes, what agents get in their environment).

    Raises: RunFolderError if the attempt is for one machine.
    """
    launch = plan_of_attempt(files).config.launch
    raise RunFolderError(f"{files.root}: launch={launch.kind} needs no driver")

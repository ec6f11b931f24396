"""Where the nodes of an attempt are, by the settings in its plan."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launch.driving.nodes import Nodes
from launch.ssh.hosts import hosts_of
from launch.ssh.nodes import SshNodes
from launch.ssh.words import selected
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import RunFolderError
from trainer.plan import plan_of_attempt
from trainer.records.run_files import AttemptFiles


def place_of(files: AttemptFiles) -> tuple[Nodes, Mapping[str, str]]:
    """(the nodes, what agents get in their environment).

    Raises: ConfigError if no host is named; RunFolderError if the attempt is for one machine.
    """
    launch = plan_of_attempt(files).config.launch
    if isinstance(launch, SshLaunch):
        folder = files.root.parent.parent.absolute()
        env = selected(os.environ, launch.environment)
        return SshNodes(launch, hosts_of(launch), folder), env
    raise RunFolderError(f"{files.root}: launch={launch.kind} needs no driver")

"""Where the nodes of an attempt are, by the settings in its plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launch.driving.nodes import Nodes
from launch.raying.cluster import bundle_of
from launch.raying.nodes import RayNodes
from launch.ssh.hosts import hosts_of
from launch.ssh.nodes import SshNodes
from launch.ssh.words import selected
from trainer.config.sections.ray import RayLaunch
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import RunFolderError
from trainer.plan import plan_of_attempt
from trainer.records.run_files import AttemptFiles


def place_of(files: AttemptFiles) -> tuple[Nodes, Mapping[str, str]]:
    """(the nodes, what agents get in their environment).

    Raises: ConfigError if no host is named; RunFolderError if the attempt is for one machine.
    """
    plan = plan_of_attempt(files)
    launch = plan.config.launch
    if isinstance(launch, RayLaunch):
        ranks = plan.config.resources.ranks_per_node
        bundle = bundle_of(launch, ranks=ranks, device=plan.device)
        env = selected(os.environ, launch.environment)
        if launch.submit == "job":  # on the head node the token is where Ray itself finds it
            launch = launch.model_copy(update={"token_file": None})
        return RayNodes(launch, bundle=bundle, workdir=Path.cwd()), env
    if isinstance(launch, SshLaunch):
        folder = files.root.parent.parent.absolute()
        env = selected(os.environ, launch.environment)
        return SshNodes(launch, hosts_of(launch), folder), env
    raise RunFolderError(f"{files.root}: launch={launch.kind} needs no driver")

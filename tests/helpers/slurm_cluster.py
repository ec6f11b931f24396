"""A real Slurm on the machines of tests/helpers/nodes.py: its controller on the login machine.

    with slurm_cluster(tmp_path, nodes=2) as cluster:
        done = cluster.command(["longhaul", ...])
        cluster.lab.node("node1").kill()

auth/none: no munge, nothing outside the lab is touched. Devices of GPUs are links to /dev/null.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.processes import die_with_parent
from tests.helpers import slurm_accounts
from tests.helpers.nodes import REPOSITORY, Lab, Machine, environment, machines, skip

PATIENCE_S = 60.0
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_CONF = """\
ClusterName=lab
SlurmctldHost=login({address})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout={slurmd_timeout}
TCPTimeout=2
MessageTimeout=5
KillWait={kill_wait}
MinJobAge={min_job_age}
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,requeue_setup_env_fail
CompleteWait=0
AuthInfo=cred_expire=5
JobRequeue=1
PreemptMode=REQUEUE
{accounting}PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=patient Nodes=ALL PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL PriorityTier=1 MaxTime=10 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
_NO_ACCOUNTS = """\
PreemptType=preempt/partition_prio
AccountingStorageType=accounting_storage/none
"""
_SETTINGS = {"slurmd_timeout": 10, "kill_wait": 5, "min_job_age": 3600}


@dataclass
class Cluster:
    lab: Lab
    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def login(self) -> Machine:
        return self.lab.login

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        conf = str(self.folder / "slurm.conf")
        return environment({"SLURM_CONF": conf, "PATH": path} | (more or {}))

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 60.0) -> str:
        """Of a user on the login machine; what it printed."""
        return self.login.run(argv, env=self.env(), check=check, timeout=timeout)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return self.login.popen(argv, **{"env": self.env()} | options)

    def state(self, job: str) -> str:
        return self.run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"], check=False).strip()

    def wait(self, condition: Callable[[], Any], *, seconds: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited in vain; {self.story()}"
            time.sleep(0.1)
        return value

    def until_state(self, job: str, *states: str, seconds: float = PATIENCE_S) -> str:
        return str(self.wait(lambda: (s := self.state(job)) in states and s, seconds=seconds))

    def story(self) -> str:
        """What is there to be read when a test fails."""
        queue = self.run(["squeue", "-t", "all", "-o", "%i %j %T %r %N"], check=False)
        nodes = self.run(["sinfo", "-N", "-o", "%N %t %E"], check=False)
        return f"queue:\n{queue}\nnodes:\n{nodes}"

    # --- daemons --------------------------------------------------------------------------------

    def start_controller(self) -> None:
        self.daemon(self.login, ["slurmctld", "-D", "-i"])

    def start_node(self, machine: Machine) -> None:
        self.daemon(machine, ["slurmd", "-D", "-N", machine.name])

    def daemon(
        self, machine: Machine, argv: Sequence[str], *, env: dict[str, str] | None = None
    ) -> None:
        with (self.folder / f"{argv[0]}.{machine.name}.out").open("ab") as log:
            process = subprocess.Popen(
                machine.words([str(_tool(argv[0])), *argv[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env(env),
                preexec_fn=die_with_parent(),
            )
        self.daemons.append(process)
        machine.daemons.append(process)

    def until_idle(self) -> None:
        names = {each.name for each in self.lab.nodes if each.pid}

        def idle() -> bool:
            said = self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"], check=False)
            rows = [line.split() for line in said.splitlines()]
            return {row[0] for row in rows if row[-1] == "idle"} >= names

        self.wait(idle)


def why_not(*, accounts: bool = False) -> str:
    """Why no Slurm can be started here; empty if one can."""
    missing = [name for name in _TOOLS if _tool(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm)"
    if accounts and (missing := slurm_accounts.missing()):
        packages = "slurmdbd slurm-wlm-mysql-plugin mariadb-server"
        return f"{', '.join(missing)} not installed (Debian: {packages})"
    return ""


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def slurm_cluster(
    folder: Path,
    *,
    nodes: int = 2,
    cpus: int = 8,
    gpus: int = 4,
    accounts: bool = False,
    **settings: Any,
) -> Iterator[Cluster]:
    """Skips (or fails, where cluster tests are required) if it cannot be."""
    if reason := why_not(accounts=accounts):
        skip(reason)
    with machines(folder / "lab", nodes, sshd=False) as lab:
        cluster = Cluster(lab, folder / "slurm")
        accounting = slurm_accounts.CONF.format(address=lab.login.address)
        given = {"accounting": accounting if accounts else _NO_ACCOUNTS}
        _write_conf(cluster, cpus=cpus, gpus=gpus, settings=_SETTINGS | settings | given)
        try:
            if accounts:
                slurm_accounts.start_accounts(cluster)
            cluster.start_controller()
            for each in lab.nodes:
                cluster.start_node(each)
            cluster.until_idle()
            yield cluster
        finally:
            for daemon in cluster.daemons:
                daemon.kill()


def _write_conf(cluster: Cluster, *, cpus: int, gpus: int, settings: dict[str, Any]) -> None:
    folder = cluster.folder
    (folder / "dev").mkdir(parents=True)
    for number in range(gpus):
        (folder / "dev" / f"gpu{number}").symlink_to("/dev/null")
    text = _CONF.format(folder=folder, address=cluster.login.address, **settings)
    for each in cluster.lab.nodes:
        text += f"NodeName={each.name} NodeAddr={each.address} CPUs={cpus} RealMemory=8000 "
        text += f"Gres=gpu:{gpus} Feature=a100 State=UNKNOWN\n"
    (folder / "slurm.conf").write_text(text)
    devices = f"{folder}/dev/gpu[0-{gpus - 1}]"
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={devices}\n")


__all__ = ["REPOSITORY", "Cluster", "slurm_cluster"]

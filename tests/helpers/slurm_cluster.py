"""A real Slurm on the machines of tests/helpers/nodes.py: its controller on the login machine.

    with slurm_cluster(tmp_path, nodes=2) as cluster:
        done = cluster.command(["longhaul", ...])
        cluster.lab.node("node1").kill()

auth/none: no munge, nothing outside the lab is touched. Devices of GPUs are links to /dev/null.
Where there can be no namespaces all daemons run on this machine, on ports of their own: nodes then
cannot be cut or killed, nor found by name, and tests that need that are left out (`lab=True`).
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node.processes import die_with_parent
from tests.helpers import slurm_accounts
from tests.helpers.nodes import REPOSITORY, Lab, Machine, environment, machines, skip
from tests.helpers.nodes import why_not as no_machines

PATIENCE_S = 300.0  # of a slow machine: nobody waits for what is there
_LOOK_S = 10.0
_PORTS = range(11000, 19000)
_HELD = "launch failed requeued held"
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_CONF = """\
ClusterName=lab
SlurmctldHost={controller}({address})
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
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
MessageTimeout=10
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
_SETTINGS = {"slurmd_timeout": 10, "kill_wait": 10, "min_job_age": 3600}


class Here(Machine):
    """Not a machine of its own, but this one."""

    def words(self, argv: Sequence[str | Path]) -> list[str]:
        return [str(word) for word in argv]


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

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 400.0) -> str:
        """Of a user on the login machine; what it printed."""
        return self.login.run(argv, env=self.env(), check=check, timeout=timeout)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return self.login.popen(argv, **{"env": self.env()} | options)

    def state(self, job: str) -> str:
        return self.run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"], check=False).strip()

    def wait(self, condition: Callable[[], Any], *, seconds: float = PATIENCE_S) -> Any:
        begun = looked = time.monotonic()
        while not (value := condition()):
            now = time.monotonic()
            assert now - begun < seconds, f"waited in vain; {self.story()}"
            if now - looked > _LOOK_S:
                self._release_held()
                looked = now
            time.sleep(0.1)
        return value

    def _release_held(self) -> None:
        """A slurmd that stood still for MessageTimeout: its job is held until somebody looks."""
        waiting = self.run(["squeue", "-h", "-t", "PD", "-o", "%A %r"], check=False)
        for line in waiting.splitlines():
            job, _, why = line.strip().partition(" ")
            if why == _HELD:
                self.run(["scontrol", "release", job], check=False)

    def until_state(self, job: str, *states: str, seconds: float = PATIENCE_S) -> str:
        return str(self.wait(lambda: (s := self.state(job)) in states and s, seconds=seconds))

    def story(self) -> str:
        """What is there to be read when a test fails."""
        queue = self.run(["squeue", "-t", "all", "-o", "%i %j %T %r %N"], check=False)
        nodes = self.run(["sinfo", "-N", "-o", "%N %t %E"], check=False)
        return f"queue:\n{queue}\nnodes:\n{nodes}"

    def end_jobs(self) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.run(["scancel", f"--user={user}"], check=False)
        self.wait(lambda: not self.run(["squeue", "-h"], check=False).strip())

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
    lab: bool | None = None,
    **settings: Any,
) -> Iterator[Cluster]:
    """Skips (or fails, where cluster tests are required) if it cannot be.

    `lab` True: nodes are machines; False: they are daemons of this one; None: what can be had.
    """
    if reason := why_not(accounts=accounts):
        skip(reason)
    as_machines = not no_machines() if lab is None else lab
    made = machines(folder / "lab", nodes, sshd=False) if as_machines else _here(folder, nodes)
    with made as lab_made:
        cluster = Cluster(lab_made, folder / "slurm")
        accounting = slurm_accounts.CONF.format(address=cluster.login.address)
        given = {"accounting": accounting if accounts else _NO_ACCOUNTS}
        # Sockets lie there, and the path of one may have 107 characters, wherever TMPDIR is.
        spool = tempfile.mkdtemp(prefix="longhaul-spool-", dir="/tmp")
        given["spool"] = spool
        _write_conf(cluster, cpus=cpus, gpus=gpus, settings=_SETTINGS | settings | given)
        try:
            if accounts:
                slurm_accounts.start_accounts(cluster, sockets=Path(spool))
            cluster.start_controller()
            for each in cluster.lab.nodes:
                cluster.start_node(each)
            cluster.until_idle()
            yield cluster
        finally:
            if isinstance(cluster.login, Here):  # no namespace takes its processes along
                cluster.end_jobs()
            for daemon in cluster.daemons:
                daemon.kill()
                daemon.wait(PATIENCE_S)
            shutil.rmtree(spool, ignore_errors=True)


@contextmanager
def _here(folder: Path, count: int) -> Iterator[Lab]:
    lab = Lab(folder)
    lab.login = Here(lab, "login", "127.0.0.1", pid=os.getpid())
    lab.nodes = [Here(lab, f"node{k}", "127.0.0.1", pid=os.getpid()) for k in range(1, count + 1)]
    yield lab


def _free_ports(count: int) -> list[int]:
    """Below the range from which the kernel gives some to whoever asks for any."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def _write_conf(cluster: Cluster, *, cpus: int, gpus: int, settings: dict[str, Any]) -> None:
    folder = cluster.folder
    (folder / "dev").mkdir(parents=True)
    for number in range(gpus):
        (folder / "dev" / f"gpu{number}").symlink_to("/dev/null")
    ports: Sequence[int | None] = [None] * (len(cluster.lab.nodes) + 1)
    names = {"controller": "login", "user": pwd.getpwuid(os.geteuid()).pw_name}
    if isinstance(cluster.login, Here):
        ports = _free_ports(len(ports))
        names["controller"] = socket.gethostname()
    text = _CONF.format(folder=folder, address=cluster.login.address, **settings, **names)
    if ports[0]:
        text += f"SlurmctldPort={ports[0]}\n"
    for each, port in zip(cluster.lab.nodes, ports[1:], strict=True):
        text += f"NodeName={each.name} NodeAddr={each.address} CPUs={cpus} RealMemory=8000 "
        text += f"Port={port} NodeHostname={names['controller']} " if port else ""
        text += f"Gres=gpu:{gpus} Feature=a100 State=UNKNOWN\n"
    (folder / "slurm.conf").write_text(text)
    devices = f"{folder}/dev/gpu[0-{gpus - 1}]"
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={devices}\n")


__all__ = ["REPOSITORY", "Cluster", "slurm_cluster"]

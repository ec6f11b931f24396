"""Accounts for the Slurm of tests/helpers/slurm_cluster.py: slurmdbd over a MariaDB of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.helpers.slurm_cluster import Cluster

TOOLS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacctmgr", "sacct")
CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
PriorityType=priority/multifactor
PreemptType=preempt/qos
"""
_DBD_CONF = """\
AuthType=auth/none
DbdHost=login
DbdAddr={address}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct
"""
_WHO = """\
add cluster lab
add account research
add qos scavenger set GraceTime=10 PreemptMode=requeue
add qos urgent set preempt=scavenger Priority=1000
add user root account=research qos=normal,scavenger,urgent
"""
_PATIENCE_S = 300.0


def missing() -> list[str]:
    return [name for name in TOOLS if not shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")]


def start_accounts(cluster: Cluster, *, sockets: Path) -> None:
    """Before the controller. Takes ten seconds, most of them to make an empty database."""
    folder = cluster.folder / "accounts"
    folder.mkdir()
    socket = sockets / "mariadb"
    _start_database(cluster, folder, socket)
    (cluster.folder / "slurmdbd.conf").write_text(
        _DBD_CONF.format(folder=folder, address=cluster.login.address)
    )
    (cluster.folder / "slurmdbd.conf").chmod(0o600)
    cluster.daemon(cluster.login, ["slurmdbd", "-D"], env={"MYSQL_UNIX_PORT": str(socket)})
    _until(lambda: "error" not in cluster.run(["sacctmgr", "-n", "list", "cluster"], check=False))
    for line in _WHO.splitlines():
        cluster.run(["sacctmgr", "-i", *line.split()])


def _start_database(cluster: Cluster, folder: Path, socket: Path) -> None:
    data = folder / "data"
    make = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"]
    make += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(make, check=True, capture_output=True, timeout=_PATIENCE_S * 2)
    serve = ["mariadbd", "--no-defaults", f"--datadir={data}", "--user=root"]
    serve += [f"--socket={socket}", "--skip-networking", f"--pid-file={folder}/pid"]
    serve += ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
    cluster.daemon(cluster.login, [*serve, "--innodb-buffer-pool-size=64M"])
    _until(socket.exists)
    words = (
        "create database slurm_acct; create user slurm@localhost identified by 'x'; "
        "grant all on slurm_acct.* to slurm@localhost"
    )
    cluster.run(["mariadb", "--no-defaults", f"--socket={socket}", "-uroot", "-e", words])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the accounts of Slurm do not start"
        time.sleep(0.1)

"""Several machines on this one: own network, hostname, mounts and processes each, and a real sshd.

    with machines(tmp_path, 3) as lab:
        lab.login.run(["ssh", *lab.ssh_options, "node1", "hostname"])
        lab.nodes[0].kill()          # as if it had been switched off: every process at once
        lab.nodes[1].cut()           # it lives, but no packet comes through any more
        lab.nodes[1].join()

The login machine has a network and a hostname of its own and shares processes with the tests: what
is started there can be signalled by its pid. The bridge between all of them is in its network
namespace, so nothing on the host is changed and everything is gone when the tests are, however
they end. Folders are shared unless a machine mounts something of its own. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from launch.node.processes import die_with_parent

REPOSITORY = Path(__file__).parents[2]
UNPACKED = Path(sys.prefix) / "debian"  # where .ci/setup unpacks what is not installed
REQUIRE = "LONGHAUL_REQUIRE_CLUSTER"  # "1": what cannot be tested here is a failure
# What the doctor may find wrong with machines that share the cores and the disk of a busy one.
TIMED = frozenset({"compute", "disk speed", "rendezvous", "shared folder", "name resolution"})
_NETWORK = "10.77.0"
_PATIENCE_S = 300.0
_HOLD = "import sys; print('ready', flush=True); sys.stdin.read()"
_PID_1 = """
import os, time
print("ready", flush=True)
while True:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        time.sleep(0.2)
"""


def skip(reason: str) -> None:
    """Leave the test out, aloud; where the cluster tests are required, fail instead."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {reason}")
    pytest.skip(reason)


def sshd_path() -> Path | None:
    for place in (Path("/usr/sbin/sshd"), UNPACKED / "usr/sbin/sshd"):
        if place.exists():
            return place
    return None


def why_not() -> str:
    """Why machines cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "namespaces with a network of their own need root"
    missing = [
        tool for tool in ("ip", "unshare", "nsenter", "ssh-keygen") if not shutil.which(tool)
    ]
    if missing:
        return f"{', '.join(missing)} not installed (iproute2, util-linux, openssh-client)"
    if sshd_path() is None:
        return "there is no sshd (openssh-server); .ci/setup unpacks one on Debian and Ubuntu"
    tried = subprocess.run(["unshare", "-n", "-m", "-p", "--fork", "true"], capture_output=True)
    return "" if tried.returncode == 0 else f"unshare: {tried.stderr.decode().strip()}"


def allowed(seconds: float) -> float:
    """What a promise of so many seconds allows where there is more to do than there are cores.

    By the highest of the kernel's averages: the newest says little of what began a moment ago, or
    was over a moment ago.
    """
    return seconds * max(1.0, max(os.getloadavg()) / (os.cpu_count() or 1))


@dataclass
class Machine:
    """`pid`: of the process that holds its namespaces, as seen from here; 0: it is off."""

    lab: Lab
    name: str
    address: str
    pid: int = 0
    holder: subprocess.Popen[str] | None = None
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def is_login(self) -> bool:
        return self is self.lab.login

    def words(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that does `argv` on this machine, typed on this one."""
        which = ["-n", "-m", "-u", *([] if self.is_login else ["-p", "-i"])]
        enter = ["nsenter", "-t", str(self.pid), *which, f"--wd={REPOSITORY}", "--"]
        return [*enter, *map(str, argv)]

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """On the login machine its pid is the program's own, elsewhere that of `nsenter`."""
        return subprocess.Popen(self.words(argv), preexec_fn=die_with_parent(), **options)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 400.0,
        check: bool = True,
        **options: Any,
    ) -> str:
        """What it printed. Raises: AssertionError if it failed and `check`."""
        done = subprocess.run(
            self.words(argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, (argv, done.stdout)
        return str(done.stdout)

    def sh(self, script: str, *, check: bool = True) -> str:
        return self.run(["sh", "-ec", script], check=check)

    # --- of nodes only --------------------------------------------------------------------------

    @property
    def port_name(self) -> str:
        """Of its cable's end at the bridge."""
        return f"port{self.address.rpartition('.')[2]}"

    def boot(self, *, sshd: bool = True) -> Machine:
        """Switch it on (again); the same name, address and host key."""
        assert self.pid == 0, f"{self.name} is on"
        enter = self.lab.login.words(["unshare", "-n", "-m", "-u", "-p", "-i", "--fork"])
        enter += ["--kill-child", "--mount-proc", "--propagation", "private"]
        argv = [*enter, sys.executable, "-S", "-E", "-c", _PID_1]
        self.holder = _held(argv, self.lab.folder / f"{self.name}.log")
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        self.pid = int(children.read_text().split()[0])
        card = f"02:00:0a:4d:00:{int(self.address.rpartition('.')[2]):02x}"  # the same for life
        self.lab.login.sh(
            f"ip link add {self.port_name} type veth peer name eth0 address {card} "
            f"netns {self.pid}\n"
            f"ip link set {self.port_name} master br0 up"
        )
        self.sh(
            f"hostname {self.name}; ip link set lo up\n"
            f"ip addr add {self.address}/24 dev eth0; ip link set eth0 up\n"
            f"ip route add default via {_NETWORK}.1\n"
            "mount -t tmpfs none /dev/shm; mount -t tmpfs none /run; mkdir -m 755 /run/sshd"
        )
        if sshd:
            self._serve()
        return self

    def kill(self) -> None:
        """Every process of it, at once; its connections are closed by its dying kernel."""
        assert self.holder is not None
        os.kill(self.pid, signal.SIGKILL)
        _over(self.holder)
        for daemon in self.daemons:
            daemon.wait(_PATIENCE_S)
        self.daemons.clear()
        # Its end of the cable goes with its network, which the kernel takes apart in its own time.
        gone = f"ip link del {self.port_name} 2>/dev/null; ! ip link show {self.port_name} 2>&1"
        deadline = time.monotonic() + _PATIENCE_S
        while self.lab.login.sh(f"{gone} >/dev/null || echo there", check=False):
            assert time.monotonic() < deadline, f"{self.port_name} stays"
        self.pid = 0

    def power_off(self) -> None:
        """As `kill`, but nobody hears a word of it."""
        self.cut()
        self.kill()

    def cut(self) -> None:
        """No packet comes to it or from it any more; its own link seems up."""
        self.lab.login.sh(f"ip link set {self.port_name} nomaster")

    def join(self) -> None:
        self.lab.login.sh(f"ip link set {self.port_name} master br0")

    def _serve(self) -> None:
        folder, sshd = self.lab.folder, sshd_path()
        log = (folder / f"{self.name}.sshd.log").open("ab")
        argv = [str(sshd), "-D", "-e", "-f", str(folder / f"{self.name}.sshd_config")]
        libraries = next(iter(UNPACKED.glob("usr/lib/*-linux-gnu")), None)
        env = dict(os.environ) | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
        self.daemons.append(self.popen(argv, stdout=log, stderr=log, env=env))
        log.close()
        probe = f"import socket; socket.create_connection(('{self.address}', 22), 0.3).close()"
        deadline = time.monotonic() + _PATIENCE_S
        while self.lab.login.run([sys.executable, "-S", "-c", probe], check=False):
            assert time.monotonic() < deadline, (folder / f"{self.name}.sshd.log").read_text()
            time.sleep(0.02)


@dataclass
class Lab:
    """The machines of one test (or of one module)."""

    folder: Path  # keys, sshd's settings and logs
    login: Machine = field(init=False)
    nodes: list[Machine] = field(default_factory=list)

    @cached_property
    def temp(self) -> Path:
        """For temporary files, where TMPDIR says so; short enough a name for ssh's sockets."""
        return Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))

    @property
    def identity(self) -> Path:
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def ssh_options(self) -> list[str]:
        """For `ssh` on the login machine: its key, and the host keys it knows."""
        return [
            "-F",
            "none",
            "-i",
            str(self.identity),
            "-o",
            f"UserKnownHostsFile={self.known_hosts}",
        ]

    def node(self, name: str) -> Machine:
        return next(each for each in self.nodes if each.name == name)

    def close(self) -> None:
        for each in [*self.nodes, self.login]:
            if each.holder is not None:
                each.holder.kill()
                _over(each.holder)
            for daemon in each.daemons:
                daemon.wait(_PATIENCE_S)
        if "temp" in self.__dict__:
            shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def machines(folder: Path, count: int, *, sshd: bool = True) -> Iterator[Lab]:
    """`count` nodes named node1.. and a login machine; skips (or fails) where they cannot be."""
    if reason := why_not():
        skip(reason)
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder)
    lab.login = Machine(lab, "login", f"{_NETWORK}.1")
    numbers = range(1, count + 1)
    lab.nodes = [Machine(lab, f"node{k}", f"{_NETWORK}.{10 + k}") for k in numbers]
    _write_keys(lab)
    _write_tables(lab)
    try:
        _boot_login(lab)
        for each in lab.nodes:
            each.boot(sshd=sshd)
        yield lab
    finally:
        lab.close()


def _boot_login(lab: Lab) -> None:
    argv = ["unshare", "-n", "-m", "-u", "--propagation", "private"]
    argv += [sys.executable, "-S", "-E", "-c", _HOLD]
    lab.login.holder = _held(argv, lab.folder / "login.log")
    lab.login.pid = lab.login.holder.pid
    lab.login.sh(
        "hostname login; ip link set lo up\n"
        f"mount --bind {lab.folder}/hosts /etc/hosts\n"
        f"mount --bind {lab.folder}/passwd /etc/passwd\n"
        f"mount --bind {lab.folder}/resolv.conf /etc/resolv.conf\n"
        # Its address would be the lowest of its ports' otherwise, and change as machines come.
        "ip link add br0 address 02:00:0a:4d:00:01 type bridge\n"
        f"ip addr add {_NETWORK}.1/24 dev br0; ip link set br0 up"
    )


def _held(argv: Sequence[str], log: Path) -> subprocess.Popen[str]:
    """A process that says "ready" once its namespaces stand; it goes with this one."""
    with log.open("ab") as errors:
        made = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=die_with_parent(),
        )
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n", log.read_text()
    return made


def _over(holder: subprocess.Popen[str]) -> None:
    holder.wait(_PATIENCE_S)
    for pipe in (holder.stdin, holder.stdout):
        assert pipe is not None
        pipe.close()


def _write_tables(lab: Lab) -> None:
    names = "".join(f"{each.address} {each.name}\n" for each in [lab.login, *lab.nodes])
    (lab.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    # torch asks for IPv6 addresses too, and waited 10 s for a name server that cannot be reached.
    (lab.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    # A home of their own: what a login shell does with the real one is not killed half-way.
    (lab.folder / "home").mkdir()
    others = [x for x in Path("/etc/passwd").read_text().splitlines() if x.split(":")[2] != "0"]
    users = [f"root:x:0:0:root:{lab.folder}/home:/bin/sh", *others]
    if not any(x.startswith("sshd:") for x in users):
        users.append("sshd:x:74:65534::/run/sshd:/usr/sbin/nologin")
    (lab.folder / "passwd").write_text("\n".join(users) + "\n")


def _write_keys(lab: Lab) -> None:
    _keygen(lab.identity)
    keys = lab.folder / "authorized_keys"
    keys.write_text(lab.identity.with_suffix(".pub").read_text())
    known = []
    for each in lab.nodes:
        key = lab.folder / f"{each.name}.host_key"
        _keygen(key)
        kind, body, *_ = key.with_suffix(".host_key.pub").read_text().split()
        known.append(f"{each.name},{each.address} {kind} {body}\n")
        (lab.folder / f"{each.name}.sshd_config").write_text(
            f"HostKey {key}\nAuthorizedKeysFile {keys}\nUsePAM no\nStrictModes no\n"
            "PidFile none\nMaxStartups 100\nListenAddress 0.0.0.0\n"  # of a network of its own
        )
    lab.known_hosts.write_text("".join(known))


def _keygen(path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, capture_output=True)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """For what is started on these machines: this package, and no trace of the tests' own."""
    return dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)} | dict(more or {})

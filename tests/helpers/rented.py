"""An EC2 of moto's whose instances are machines of tests/helpers/nodes.py.

    with rented(tmp_path, 2) as cloud:
        cloud.lab.login.run(["ray", "up", ...], env=cloud.environment())
        cloud.instances      # what moto says of them, by id

Addresses of instances are made up. Each instance that moto calls running is given a machine: that
takes its addresses, so that ssh to them ends there. The machines' networks have no way out, so
nothing of this reaches anybody else's computer. No instance is billed, or needs an image.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.moto_server import moto_python
from tests.helpers.nodes import REPOSITORY, Lab, environment, machines

KEY_PAIR = "tests"
HEAD, WORKER = "m5.large", "c5.xlarge"  # the kinds of machines that this cloud has
_PORT = 5555  # of the login machine, which has a network of its own
# Ray asks for all kinds each time; AWS has hundreds, which takes half a minute to say.
_SERVER = f"""
import sys
from moto.ec2.models.instance_types import INSTANCE_TYPES
for name in set(INSTANCE_TYPES) - {{{HEAD!r}, {WORKER!r}}}:
    del INSTANCE_TYPES[name]
from moto.server import main
main(sys.argv[1:])
"""
# An account that has used Ray before: Ray waits 30 s after it has made these. Then the instances
# are watched.
_ACCOUNT = f"""
import json, time, boto3
iam, ec2 = boto3.client("iam"), boto3.client("ec2")
iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{{}}")
iam.add_role_to_instance_profile(
    InstanceProfileName="ray-autoscaler-v1", RoleName="ray-autoscaler-v1"
)
ec2.create_key_pair(KeyName={KEY_PAIR!r})
print(json.dumps({{"image": ec2.describe_images()["Images"][0]["ImageId"]}}), flush=True)
said = {{}}
while True:
    for reservation in ec2.describe_instances()["Reservations"]:
        for one in reservation["Instances"]:
            names = ("InstanceType", "InstanceLifecycle", "PrivateIpAddress", "PublicIpAddress")
            known = {{name: one.get(name) for name in names}} | {{"state": one["State"]["Name"]}}
            if said.get(one["InstanceId"]) != known:
                said[one["InstanceId"]] = known
                print(json.dumps(known | {{"id": one["InstanceId"]}}), flush=True)
    time.sleep(0.5)
"""


@dataclass
class Cloud:
    lab: Lab
    temporary: Path  # of Ray, on each machine its own; sockets have short names
    python: Path  # the interpreter of every machine: this one, with boto3
    image: str = ""
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)  # instance -> machine

    @property
    def tools(self) -> Path:
        return self.lab.folder / "tools"

    def environment(self) -> dict[str, str]:
        """Of the person at the login machine."""
        ours = {
            "HOME": str(self.lab.folder / "home"),
            "PATH": f"{self.tools}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": f"{self.tools / 'packages'}:{REPOSITORY}",
        }
        return environment(ours | _variables(self.temporary))

    def follow(self, watcher: subprocess.Popen[str]) -> None:
        """Until the watcher's end."""
        assert watcher.stdout is not None
        for line in watcher.stdout:
            said = json.loads(line)
            if "image" in said:
                self.image = said["image"]
                continue
            self.instances[said["id"]] = said
            if said["state"] == "running" and said["id"] not in self.where:
                self._give_a_machine(said)

    def _give_a_machine(self, said: dict[str, Any]) -> None:
        node = self.lab.nodes[len(self.where)]
        self.where[said["id"]] = node.name
        private, public = said["PrivateIpAddress"], said["PublicIpAddress"]
        for address in {private, public} - {None}:
            node.sh(f"ip addr add {address}/32 dev eth0")
        node.sh(f"ip route replace default dev eth0 src {private}")


def _variables(temporary: Path) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://10.77.0.1:{_PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_MEMORY_MONITOR": "1",
        "RAY_TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "PIP_NO_INDEX": "1",  # what is installed is here already, or it is said
        "PIP_CONFIG_FILE": "/dev/null",
    }


@contextmanager
def rented(folder: Path, count: int) -> Iterator[Cloud]:
    """Skips (or fails, where cluster tests are required) without moto, Ray or namespaces."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed; Ray sends files with it")
    moto = moto_python()
    temporary = Path(tempfile.mkdtemp(prefix="lhu-", dir="/tmp"))
    before = set(Path("/tmp").glob("ray_ssh_*/*"))
    with machines(folder, count) as lab:
        cloud = Cloud(lab, temporary, lab.folder / "tools/python")
        _write_tools(cloud, Path(moto))
        for each in [lab.login, *lab.nodes]:
            home = lab.folder / "home"
            each.sh(f"mount -t tmpfs none {home}; mkdir -m 700 {home}/.ray {home}/.ssh")
            each.sh(f"mount -t tmpfs none {temporary}")
        lab.login.sh("ip route add default dev br0")
        try:
            with _running(cloud, moto):
                yield cloud
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            for sockets in set(Path("/tmp").glob("ray_ssh_*/*")) - before:
                shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def _running(cloud: Cloud, moto: str) -> Iterator[None]:
    """moto's server, and who watches it."""
    login, env = cloud.lab.login, environment(_variables(cloud.temporary))
    env.pop("PYTHONPATH")
    host = ["-H", login.address, "-p", str(_PORT)]
    with (cloud.lab.folder / "moto.log").open("wb") as log:
        server = login.popen([moto, "-c", _SERVER, *host], stdout=log, stderr=log, env=env)
        probe = f"import socket; socket.create_connection(({login.address!r}, {_PORT})).close()"
        wait_for(lambda: not login.run([sys.executable, "-S", "-c", probe], check=False))
        watcher = login.popen(
            [moto, "-c", _ACCOUNT], stdout=subprocess.PIPE, stderr=log, env=env, text=True
        )
    follower = threading.Thread(target=cloud.follow, args=(watcher,), daemon=True)
    follower.start()
    try:
        wait_for(lambda: cloud.image != "")
        yield
    finally:
        for process in (watcher, server):
            process.kill()
            process.wait()
        follower.join()
        assert watcher.stdout is not None
        watcher.stdout.close()


def _write_tools(cloud: Cloud, moto: Path) -> None:
    """What a machine has besides the system: the interpreter, and Ray's command for people."""
    packages = cloud.tools / "packages"
    packages.mkdir(parents=True)
    (site,) = (moto.parent.parent / "lib").glob("python3*/site-packages")
    for name in ("boto3", "botocore", "s3transfer", "jmespath"):
        for path in [site / name, *site.glob(f"{name}-*.dist-info")]:
            (packages / path.name).symlink_to(path)
    variables = _variables(cloud.temporary) | {"PYTHONPATH": f"{packages}:{REPOSITORY}"}
    lines = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
    _executable(cloud.python, f'{lines}exec {sys.executable} "$@"')
    _executable(cloud.tools / "ray", f'exec {cloud.python} -m ray.scripts.scripts "$@"')


def _executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)

"""The S3 protocol, against moto's server on loopback: what is said, not how fast or how safe."""

from __future__ import annotations

import random
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.lost_machine import KEY, SECRET, command, lose_the_machine
from tests.helpers.moto_server import moto_python
from tests.helpers.nodes import skip
from trainer.storage.remote import open_store

pytestmark = pytest.mark.cluster

_START_S = 150.0
_PORTS = range(11000, 19000)  # the kernel gives none of these to whoever asks for any


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    if find_spec("s3fs") is None:
        skip("s3fs is not installed: pip install 'longhaul[s3]'")
    python = moto_python()
    port = random.choice(_PORTS)
    until = time.monotonic() + _START_S
    server = _serve(python, port)
    try:
        while not _answers(url := f"http://127.0.0.1:{port}"):
            if server.poll() is not None:  # somebody has that port
                port = random.choice(_PORTS)
                server = _serve(python, port)
            assert time.monotonic() < until, "moto's server does not answer"
            time.sleep(0.2)
        request = urllib.request.Request(f"{url}/bucket", method="PUT")
        with urllib.request.urlopen(request, timeout=300):
            yield url
    finally:
        server.kill()
        server.wait(300)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.usefixtures("credentials")
def test_objects_of_one_and_of_many_parts(endpoint: str) -> None:
    store = open_store("s3://bucket/objects", {"endpoint_url": endpoint})
    assert store.names(Path("a")) == []
    data = np.random.default_rng(1).integers(0, 256, 40 << 20, dtype=np.uint8)
    for name, size in {"small": 1000, "large": len(data)}.items():
        store.put(Path("a") / name, lambda size=size: [data[:size]], size=size)  # type: ignore[misc]
    assert store.sizes(Path("a")) == {"small": 1000, "large": len(data)}
    out = np.empty(5000, dtype=np.uint8)
    assert store.read(Path("a/large"), 33_000_000, out) == 5000
    assert (out == data[33_000_000:33_005_000]).all()
    assert store.read(Path("a/small"), 990, out) == 10

    def breaks() -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        yield data[: 35 << 20]
        raise ValueError("chunk 7")

    with pytest.raises(OSError, match="chunk 7"):
        store.put(Path("a/half"), breaks, size=len(data))
    assert store.size(Path("a/half")) is None
    with pytest.raises(FileNotFoundError):
        store.read(Path("a/half"), 0, out)
    store.remove([Path("a/small"), Path("a/large"), Path("a/none")])
    assert store.names(Path("a")) == []


@pytest.mark.usefixtures("credentials")
def test_a_lost_machine_goes_on_from_its_copies(endpoint: str, tmp_path: Path) -> None:
    lose_the_machine(tmp_path, "s3://bucket/runs", options={"endpoint_url": endpoint}, env={})
    env = {"AWS_ENDPOINT_URL": endpoint}
    done = command(tmp_path, env, "checkpoint", "verify", "s3://bucket/runs/lost")
    assert done.returncode == 0, done.stdout
    assert "step 6: whole" in done.stdout


def _serve(python: str, port: int) -> subprocess.Popen[bytes]:
    words = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", f"{port}"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False

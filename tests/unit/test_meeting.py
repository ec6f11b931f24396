"""Who is let in where the ranks of an attempt meet."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import Store

from trainer.dist.claim import claim_rank
from trainer.dist.meeting import LISTENER, meeting_place
from trainer.dist.place import Place
from trainer.errors import NotAdmitted

LIMIT = timedelta(seconds=300)


@pytest.fixture
def address() -> dict[str, str]:
    """With the listening socket that an agent hands to rank 0."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LISTENER: str(listener.detach())}


@pytest.fixture
def served(address: dict[str, str]) -> Store:
    return meeting_place(Place(0, 2, 0), "run.2", LIMIT, address)


def test_ranks_of_one_attempt_meet_on_the_socket_that_was_held(
    served: Store, address: dict[str, str]
) -> None:
    other = meeting_place(Place(1, 2, 1), "run.2", LIMIT, address)
    served.set("said", "hello")
    assert other.get("said") == b"hello"


def test_a_second_process_of_a_rank_is_turned_away_at_once(
    served: Store, address: dict[str, str]
) -> None:
    meeting_place(Place(1, 2, 1), "run.2", LIMIT, address)
    began = time.monotonic()
    with pytest.raises(NotAdmitted, match=r"two processes want to be rank 1 of 2 \(run.2\)"):
        meeting_place(Place(1, 2, 1), "run.2", LIMIT, address)
    assert time.monotonic() - began < 100  # of the 300 that it may wait


def test_a_worker_of_an_old_attempt_is_turned_away_at_once(
    served: Store, address: dict[str, str]
) -> None:
    began = time.monotonic()
    with pytest.raises(NotAdmitted, match=r"for run.1, but there run.2 meets"):
        meeting_place(Place(1, 2, 1), "run.1", LIMIT, address)
    assert time.monotonic() - began < 100  # of the 300 that it may wait
    meeting_place(Place(1, 2, 1), "run.2", LIMIT, address)  # its place was not taken


def test_a_second_rank_0_cannot_serve(served: Store, address: dict[str, str]) -> None:
    again = {name: value for name, value in address.items() if name != LISTENER}
    with pytest.raises(RuntimeError, match="EADDRINUSE"):
        meeting_place(Place(0, 2, 0), "run.2", LIMIT, again)


def test_torchruns_own_store_is_joined_not_served(address: dict[str, str]) -> None:
    from torch.distributed import TCPStore

    port = int(address["MASTER_PORT"])
    agent = TCPStore(
        "127.0.0.1", port, 2, True, LIMIT, False, master_listen_fd=int(address[LISTENER])
    )
    assert agent.port == port
    env = address | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    meeting_place(Place(0, 2, 0), "run.1", LIMIT, env)
    meeting_place(Place(1, 2, 1), "run.1", LIMIT, env)
    meeting_place(Place(1, 2, 1), "run.1", LIMIT, env | {"TORCHELASTIC_RESTART_COUNT": "1"})


def test_a_rank_is_one_process_before_it_imports_anything(tmp_path: Path) -> None:
    held = "import sys, time; from pathlib import Path; from trainer.dist.claim import claim_rank;"
    held += "claim_rank(Path(sys.argv[1]), 1); print('held', flush=True); time.sleep(600)"
    argv = [sys.executable, "-c", held, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(NotAdmitted, match="two processes want to be rank 1 of"):
            claim_rank(tmp_path, 1)
        claim_rank(tmp_path, 0)
        first.kill()
    claim_rank(tmp_path, 1)  # it went with its process

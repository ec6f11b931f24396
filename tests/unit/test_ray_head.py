"""A head that answers, is silent for a while, and is gone."""

from __future__ import annotations

import socket

from launch.raying.head import Head
from tests.helpers.agent_process import wait_for

_HERE = "127.0.0.77"  # where nothing else of a busy machine listens


def test_a_head_is_gone_once_it_was_silent_for_long_enough_and_may_come_back() -> None:
    listening = socket.create_server((_HERE, 0))
    port = listening.getsockname()[1]
    head = Head(f"{_HERE}:{port}", patience_s=0.2, every_s=0.05)
    listening.accept()[0].close()  # it was answered, for nobody else has looked so far
    patient = Head(f"{_HERE}:{port}", patience_s=1e6, every_s=0.05)
    never = Head(f"{_HERE}:1", patience_s=0.0, every_s=0.05)
    try:
        listening.close()
        wait_for(lambda: head.gone())
        told = f"the head of the Ray cluster at {_HERE}:{port} has not answered for 0 s; start a"
        assert head.gone().startswith(told)
        assert patient.gone() == "", "within its patience it may come back"
        assert never.gone() == "", "nobody has ever answered there"
        with socket.create_server((_HERE, port)):
            wait_for(lambda: not head.gone())
    finally:
        for each in (head, patient, never):
            each.close()

"""A head that answers, is silent for a while, and is gone."""

from __future__ import annotations

import socket

from launch.raying.head import Head
from tests.helpers.agent_process import wait_for


def test_a_head_is_gone_once_it_was_silent_for_long_enough_and_may_come_back() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    heads = [Head(f"127.0.0.1:{port}", patience_s=s, every_s=0.05) for s in (0.2, 1e6)]
    try:
        listening.accept()[0].close()
        assert [head.gone() for head in heads] == ["", ""]
        listening.close()
        wait_for(lambda: heads[0].gone())
        told = f"the head of the Ray cluster at 127.0.0.1:{port} has not answered for 0 s; start a"
        assert heads[0].gone().startswith(told)
        assert heads[1].gone() == "", "within its patience it may come back"
        with socket.create_server(("127.0.0.1", port)):
            wait_for(lambda: not heads[0].gone())
    finally:
        for head in heads:
            head.close()

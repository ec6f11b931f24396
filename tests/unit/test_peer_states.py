"""States in memory without any rank: what makes a part count, which state is chosen, how often."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import config
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.orders import encode_table
from trainer.checkpoint.peer.cadence import STALL_SHARE, Cadence
from trainer.checkpoint.peer.choice import (
    Copy,
    copy_of,
    from_row,
    is_abandoned,
    to_row,
    whole_states,
)
from trainer.checkpoint.peer.line import Line
from trainer.checkpoint.peer.loading import Here, MemoryView
from trainer.checkpoint.peer.part import Part, common_of, decode, encode, is_place, manifest_of
from trainer.checkpoint.peer.process import Keeper
from trainer.checkpoint.peer.tier import _not_one_network, peers_of
from trainer.dist.meeting import own_address
from trainer.dist.world import Alone
from trainer.errors import CheckpointError, ConfigError, DamagedCheckpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import LogicalTensor, rank_file_name
from trainer.records.manifest import encode as encode_manifest
from trainer.records.memory_files import MemoryFiles

TENSORS = (LogicalTensor("a", (3, 4), ("exp_avg", "master")), LogicalTensor("b", (), ("master",)))


def part(**given: Any) -> Part:
    fields: dict[str, Any] = {
        "run_hash": "r",
        "step": 7,
        "attempt": 2,
        "world_size": 2,
        "rank": 0,
        "size": 5000,
        "digest": "0" * 32,
        "spans": ((0, 6),),
        "created": 1.5,
        "parent_step": None,
        "training": {"step": 7},
        "common": common_of("spans", TENSORS, {"engine": "zero1"}),
    }
    return Part(**fields | given)


def a_copy(place: str = "node-0/own/0002.0", leader: int = 0, **given: Any) -> Copy:
    return from_row(to_row(copy_of(part(**given), leader=leader, place=place)))


def chosen(*copies: Copy, run_hash: str = "r") -> list[tuple[int, int, list[str]]]:
    found = whole_states(copies, run_hash=run_hash, is_void=lambda _: False)
    return [(one.step, one.attempt, [c.place for c in one.chosen]) for one in found]


# --- a part ---------------------------------------------------------------------------------------


def test_a_part_comes_back_as_it_was_and_every_flipped_bit_of_it_is_noticed() -> None:
    content = encode(part())
    assert decode(content) == part()
    for at in range(len(content)):
        for bit in (1, 128):
            damaged = bytearray(content)
            damaged[at] ^= bit
            if at == len(content) - 1:
                continue  # the newline at the end says nothing
            with pytest.raises(DamagedCheckpoint):
                decode(bytes(damaged))
    for cut in range(0, len(content) - 1, 7):
        with pytest.raises(DamagedCheckpoint):
            decode(content[:cut])


def test_a_part_whose_numbers_cannot_be_is_refused() -> None:
    with pytest.raises(DamagedCheckpoint, match="numbers cannot be"):
        decode(encode(part(step=-1)))


def test_the_manifest_put_together_is_one_that_every_reader_takes() -> None:
    files = [a_copy(), a_copy(rank=1, spans=((6, 13),))]
    (state,) = whole_states(files, run_hash="r", is_void=lambda _: False)
    manifest = manifest_of(decode(state.chosen[0].part.encode()), state.rank_files)
    content = encode_manifest(manifest)
    here = Here(MemoryFiles(Path("/nowhere"), "r"), 0, 0)
    view = MemoryView(here, 7, content, [(0, c.place) for c in state.chosen])
    found, _ = StepFolders(view, Path("memory")).manifest(7)
    assert found == manifest
    assert (found.tensors, found.world_size, found.training) == (TENSORS, 2, {"step": 7})
    assert [f.name for f in found.files] == [rank_file_name(0), rank_file_name(1)]


def test_tensors_that_are_none_are_damage() -> None:
    bad = part(common={"rule": "spans", "tensors": [["a"]], "origin": {}})
    with pytest.raises(DamagedCheckpoint, match="rank 0's part cannot be understood"):
        manifest_of(bad, [])


@pytest.mark.parametrize(
    "place", ["node-0/own/0001.0/..", "../own/0001.0", "node-0/own", "node-0/own/0001.2", "/etc"]
)
def test_only_a_generation_is_a_place(place: str) -> None:
    assert not is_place(place)
    assert is_place("node-12/of-node-3/0012.1")


# --- which state ----------------------------------------------------------------------------------


def test_a_state_needs_every_ranks_file_of_one_step_attempt_and_agreement() -> None:
    whole = [a_copy(), a_copy(rank=1, place="node-1/own/0002.0", leader=1)]
    places = ["node-0/own/0002.0", "node-1/own/0002.0"]
    assert chosen(*whole) == [(7, 2, places)]
    assert chosen(whole[0]) == []
    assert chosen(whole[0], a_copy(rank=1, attempt=1)) == []
    assert chosen(whole[0], a_copy(rank=1, step=8)) == []
    assert chosen(whole[0], a_copy(rank=1, world_size=3)) == []
    other = common_of("spans", TENSORS[:1], {})
    assert chosen(whole[0], a_copy(rank=1, common=other)) == []
    assert chosen(*whole, run_hash="another") == []


def test_an_own_file_is_read_before_a_neighbours_copy_and_the_copy_where_it_is_gone() -> None:
    mine = a_copy()
    replica = a_copy("node-1/of-node-0/0002.0", leader=1)
    other = a_copy(rank=1, place="node-1/own/0002.0", leader=1)
    assert chosen(replica, mine, other)[0][2][0] == mine.place
    assert chosen(replica, other)[0][2][0] == replica.place
    (state,) = whole_states([replica, other], run_hash="r", is_void=lambda _: False)
    assert state.where == "memory of node 1 (1 of 2 files from a neighbour's copy)"


def test_the_newest_comes_first_and_of_one_step_the_later_attempts() -> None:
    copies = [
        a_copy(f"node-0/own/000{attempt}.0", rank=rank, step=step, attempt=attempt)
        for step, attempt in [(7, 2), (7, 3), (9, 1), (8, 3)]
        for rank in (0, 1)
    ]
    assert [(s, a) for s, a, _ in chosen(*copies)] == [(9, 1), (8, 3), (7, 3), (7, 2)]


def test_a_later_attempt_that_went_on_from_an_older_step_leaves_newer_states_behind() -> None:
    one = a_copy()  # step 7 of attempt 2
    assert is_abandoned(one, [(3, 6)])
    assert not is_abandoned(one, [(3, 7)])
    assert not is_abandoned(one, [(2, 0), (1, 0)])


def test_sixteen_thousand_ranks_are_chosen_from_in_seconds() -> None:
    ranks = 4096  # a quarter of them here
    copies = [
        Copy(
            leader=node - node % 8,
            place=f"node-{node // 8}/own/0002.{generation}",
            run_hash="r",
            step=7 + generation,
            attempt=2,
            world_size=ranks,
            rank=rank,
            size=1,
            digest="0" * 32,
            spans=(),
            created=0.0,
            common="c",
        )
        for rank in range(ranks)
        for node in (rank, (rank + 8) % ranks)
        for generation in (0, 1)
    ]
    began = time.process_time()
    found = whole_states(copies, run_hash="r", is_void=lambda c: is_abandoned(c, [(3, 99)]))
    assert [len(one.chosen) for one in found] == [ranks, ranks]
    assert time.process_time() - began < 2.0


# --- how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy_s", "later_s", "busy_steps", "every"),
    [(0.005, 0.0, 1, 5), (0.022, 0.060, 1, 82), (0.010, 0.004, 3, 22), (0.0001, 0.0, 1, 1)],
)
def test_the_interval_is_chosen_so_that_states_cost_one_percent(
    copy_s: float, later_s: float, busy_steps: int, every: int
) -> None:
    """A step takes 100 ms, and `later_s` more in each of the `busy_steps` after a copy."""
    now = [0.0]
    cadence = Cadence("auto", clock=lambda: now[0])
    copied, ends, left = [], [0.0], 0
    for step in range(1, 1200):
        now[0] += 0.100 + (later_s if left else 0.0)
        cadence.lap(step, busy=left > 0)
        left = max(0, left - 1)
        if cadence.due(step):
            copied.append(step)
            now[0] += copy_s
            left = busy_steps
            cadence.copied(Alone(), copy_s)
        ends.append(now[0])
    assert copied[:6] == [4, 8, 12, 16, 20, 24]  # while it is measured
    apart = {b - a for a, b in pairwise(copied[7:])}
    assert apart == {every}
    begin, end = copied[7], copied[-1]  # whole intervals: the promise itself, by the clock
    assert (ends[end] - ends[begin]) / (0.100 * (end - begin)) <= 1.0101
    assert f"every {every} steps: a state takes" in cadence.why
    assert cadence.why.endswith("and a step 100 ms, and states may take 1%")
    assert STALL_SHARE == 0.01


def test_a_given_interval_is_kept_also_after_going_back() -> None:
    cadence = Cadence(3)
    assert [step for step in range(1, 11) if cadence.due(step)] == [3, 6, 9]
    cadence.go_back(4)
    assert [step for step in range(5, 12) if cadence.due(step)] == [7, 10]


# --- room -----------------------------------------------------------------------------------------


def keeper(folder: Path, attempt: int) -> Keeper:
    opening = {"folder": str(folder), "run_id": "r", "node": 0, "rank": 0, "world_size": 1}
    opening |= {"attempt": attempt, "run_hash": "r", "chunk_bytes": 1 << 20, "is_leader": True}
    return Keeper(opening | {"copies": 1, "neighbour": None, "token": ""})


def make(one: Keeper, *names: str, keep: tuple[str, ...] = (), elements: int = 10) -> None:
    fragment = Fragment("a", "master", (elements,), 0, elements)
    layout = {"table": encode_table([fragment]), "common": {}, "spans": [], "start": 4096}
    one.do({"do": "make", "generations": list(names), "keep": list(keep), "layout": layout})


def test_room_is_made_once_what_is_older_has_gone_and_never_at_a_later_attempts_cost(
    tmp_path: Path,
) -> None:
    def there() -> list[str]:
        return [folder.name for folder in MemoryFiles(tmp_path, "r").generations()]

    make(keeper(tmp_path, 1), "0001.0", "0001.1")
    new = keeper(tmp_path, 2)
    make(new, "0002.0", keep=("0001.1",))
    assert there() == ["0001.1", "0002.0"]
    make(keeper(tmp_path, 1), "0001.1")  # an attempt that slept wakes up
    assert "0002.0" in there()
    make(new, "0002.1", keep=("0002.0",))
    assert there() == ["0002.0", "0002.1"]
    size = (tmp_path.glob("*/r/node-0/own/0002.0/rank-00000.safetensors")).__next__().stat().st_size
    assert size == 4096 + 40


def test_too_little_room_is_said_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"free, rank 0 needs 8,192.0 TiB there for its states"
    ):
        make(keeper(tmp_path, 1), "0001.0", "0001.1", elements=2**50)


# --- the line to the process ----------------------------------------------------------------------


class Dumb:
    """A process that is asked and never answers, or has died."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.asked: list[str] = []
        self.answers = list(answers)
        self.closed = False

    def give(self, order: dict[str, Any]) -> None:
        self.asked.append(order["do"])

    def said(self) -> dict[str, Any] | None:
        return self.answers.pop(0) if self.answers else None

    def close(self) -> None:
        self.closed = True


def test_a_process_that_died_is_started_again_at_once_for_others_may_be_waiting() -> None:
    dumb = Dumb({"error": "it ended"}, {"value": {}})
    line = Line(dumb)
    line.give({"do": "seal"})
    assert line.ended(time.monotonic())
    assert dumb.asked == ["seal", "hold"]
    assert line.problem == "it ended"


def test_what_a_process_says_is_wrong_starts_no_other() -> None:
    dumb = Dumb({"error": "no room", "kind": "OSError"})
    line = Line(dumb)
    line.give({"do": "make"})
    assert line.ended(time.monotonic())
    assert (dumb.asked, line.problem) == (["make"], "no room")


def test_a_process_that_says_nothing_for_two_minutes_is_ended() -> None:
    dumb = Dumb()
    line = Line(dumb)
    line.give({"do": "seal"})
    assert not line.ended(time.monotonic())
    assert line.ended(time.monotonic() - 121)
    assert dumb.closed
    assert "did nothing for 120 s" in line.problem


# --- settings and addresses -----------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="is another place on every node") as said:
        config("checkpoint.peer.every=1", "checkpoint.peer.folder=shm")
    assert "checkpoint.peer.folder=/dev/shm" in str(said.value)
    with pytest.raises(ConfigError, match="a state each 100 steps is never newer than the disk's"):
        config("checkpoint.peer.every=100", "steps.save_every=100")
    assert config("checkpoint.peer.every=99").checkpoint.peer.every == 99
    assert config("checkpoint.peer.every=auto").checkpoint.peer.every == "auto"
    assert peers_of(0, folder="/dev/shm", run_id="r", ranks_per_node=1) is None


def test_ranks_meet_where_their_neighbours_reach_them() -> None:
    assert own_address({}) == "127.0.0.1"
    assert own_address({"MASTER_ADDR": "127.0.0.1"}) == "127.0.0.1"
    assert _not_one_network(["127.0.0.1", "127.0.0.1"]) == ""
    assert _not_one_network(["10.0.0.1", "10.0.0.2"]) == ""
    said = _not_one_network(["10.0.0.1", "127.0.1.1"])
    assert said.startswith("rank 1's machine is reached at 127.0.1.1")

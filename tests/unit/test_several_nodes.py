"""Several nodes of one attempt: whose failure it was, what they wrote as one, a plan for fewer."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.driving.fit import fitted
from launch.node.failure import read_failure, record_death
from launch.node.ranks import Child, Ranks
from launch.node.ranks_spec import RANKS_FILE, RanksSpec, read_spec, spec_of_attempt, spec_text
from launch.node.reactions import on_exit
from launch.outcome import decide, observe
from launch.run.budgets import KILLED, NODE_LOST, cause_of_error
from launch.run.ended import Ended, ended_of, together, write_ended
from tests.helpers.configs import config
from trainer.plan import RunPlan, read_plan, write_plan
from trainer.planning import make_plan, replanned
from trainer.records.attempt import ErrorRecord, Started, Stop, write_record
from trainer.records.json_file import write_json
from trainer.records.lineage import read_lineage
from trainer.records.run_files import AttemptFiles, RunFiles


def attempt(folder: Path, number: int = 1, *, nodes: int = 2) -> AttemptFiles:
    files = RunFiles(folder).attempt(number)
    (files.root / RANKS_FILE).parent.mkdir(parents=True)
    spec = RanksSpec("trainer.worker", nodes, 2, "cpu", 1, 0, 10.0, most_nodes=2)
    (files.root / RANKS_FILE).write_text(spec_text(spec))
    return files


def error(rank: int, kind: str, *, is_echo: bool = False) -> ErrorRecord:
    return ErrorRecord(1.0, rank, "node", kind, "said", 76, is_echo=is_echo)


@dataclass(frozen=True)
class Gone:
    """A rank's process that has ended."""

    pid: int
    code: int

    def wait(self) -> int:
        return self.code


def known(files: AttemptFiles) -> tuple[int, str]:
    found = read_failure(files)
    assert found is not None
    return found.rank, found.kind


# --- the first failure ------------------------------------------------------------------------


def test_a_rank_that_died_of_another_nodes_failure_does_not_hide_it(tmp_path: Path) -> None:
    """NCCL ends a rank by a signal some seconds after a peer is gone."""
    files = attempt(tmp_path)
    record_death(files, 2, -9, own=(2, 3))
    record_death(files, 0, -6, own=(0, 1))
    assert known(files) == (2, KILLED)


def test_what_only_heard_of_a_failure_gives_way_to_it(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    write_record(files.error, error(0, "PeerFailed", is_echo=True))
    record_death(files, 2, -9, own=(2, 3))
    assert known(files) == (2, KILLED)
    found = read_failure(files)
    assert found is not None
    assert found.traceback == "rank 0 then said: PeerFailed: said"


def test_the_first_that_died_on_a_node_speaks_for_it(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    write_record(files.error, error(3, "RuntimeError"))
    record_death(files, 2, -9, own=(2, 3))
    assert known(files) == (2, KILLED)


def test_deaths_that_are_seen_at_once_name_the_rank_that_was_killed(tmp_path: Path) -> None:
    """An agent that got no processor meanwhile: the echo may be the first that it sees."""
    for first, second, culprit in ((76, -9, 1), (76, -6, 0), (-9, 76, 0)):
        files = attempt(tmp_path / f"{first}{second}")
        echo = 0 if first == 76 else 1
        write_record(files.error, error(echo, "RuntimeError", is_echo=True))
        children: dict[int, Child] = {0: Gone(7, first), 1: Gone(8, second)}
        ranks = Ranks(files, spec_of_attempt(files), "tag", tmp_path, children=children)
        on_exit(ranks, 0)
        on_exit(ranks, 1)
        assert known(files)[0] == ranks.first_failed == culprit
        assert known(files)[1] == (KILLED if -9 in (first, second) else "RuntimeError")


def test_a_rank_with_a_cause_of_its_own_speaks_for_one_killed_after_it(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    write_record(files.error, error(0, "DataError"))
    children: dict[int, Child] = {0: Gone(7, 78), 1: Gone(8, -9)}
    ranks = Ranks(files, spec_of_attempt(files), "tag", tmp_path, children=children)
    on_exit(ranks, 0)
    on_exit(ranks, 1)
    assert known(files) == (0, "DataError")
    assert ranks.first_failed == 0


def test_a_lost_node_is_its_own_cause() -> None:
    assert cause_of_error(error(2, NODE_LOST)) == "node"


# --- what agents wrote, as one ----------------------------------------------------------------


def test_what_all_agents_wrote_counts_though_the_driver_died(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    write_record(files.started, Started(1.0, 0, 4, "node1"))
    write_record(files.stop, Stop("interrupt", 1.0))
    write_ended(ended_of(files, 1), Ended(2.0, {"2": 75, "3": 75}))
    assert together(files) is None
    assert "did not end in time" in decide(observe(RunFiles(tmp_path), 1)).why
    write_ended(ended_of(files, 0), Ended(3.0, {"0": 75, "1": 75}))
    assert together(files) == Ended(3.0, {"0": 75, "1": 75, "2": 75, "3": 75})
    assert decide(observe(RunFiles(tmp_path), 1)).why == "stopped (interrupt) and saved at step 0"


def test_a_save_without_a_lost_node_is_none(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    write_record(files.started, Started(1.0, 0, 4, "node1"))
    write_record(files.stop, Stop("drain", 1.0))
    write_ended(ended_of(files, 0), Ended(3.0, {"0": 75, "1": 75}))
    found = together(files, lost=["node2"])
    assert found is not None
    assert found.lost == ("node2",)
    write_ended(files.ended, found)
    assert "did not end in time" in decide(observe(RunFiles(tmp_path), 1)).why


# --- fewer nodes ------------------------------------------------------------------------------


def plan(*overrides: str) -> RunPlan:
    return make_plan(
        config("resources.nodes=2", "batch.micro_batch_size=2", *overrides),
        attempt=1,
        run_id="id",
        stores=(),
        device="cpu",
        cores=4,
        vocab_size_of_tokenizer=None,
    )


def test_fewer_nodes_make_the_same_steps(tmp_path: Path) -> None:
    two = plan()
    one = replanned(two, nodes=1)
    assert (two.world_size, one.world_size) == (4, 2)
    assert (two.gradient_accumulation_steps, one.gradient_accumulation_steps) == (2, 4)
    assert one.tokens_per_step == two.tokens_per_step
    assert one.config == two.config  # what was wished for is still wished for
    assert one.memory_per_rank.optimizer > two.memory_per_rank.optimizer
    assert replanned(one, nodes=2) == two


def test_the_numbers_of_fewer_nodes_are_those_of_a_run_planned_so() -> None:
    alone = plan("resources.nodes=1")
    assert replanned(plan(), nodes=1).model_dump(exclude={"config"}) == alone.model_dump(
        exclude={"config"}
    )


def test_an_attempt_is_cut_to_the_nodes_that_are_there(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    attempt(tmp_path, 1)
    files = attempt(tmp_path, 2)
    write_plan(files.plan, plan())
    spec = fitted(run, files, read_spec(files.root / RANKS_FILE), nodes=1)
    assert (spec.nodes, spec.most_nodes, spec.world_size) == (1, 2, 2)
    assert read_spec(files.root / RANKS_FILE) == spec
    assert read_plan(files.plan).world_size == 2
    (line,) = read_lineage(run.lineage)
    assert (line.attempt, line.world_size, line.bitexact) == (2, 2, False)
    assert [(c["where"], c["old"], c["new"]) for c in line.changes] == [("resources.nodes", 2, 1)]


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    files = attempt(tmp_path)
    old = asdict(Ended(time.time(), {"0": 0}))
    del old["lost"], old["told_to_stop"]
    write_json(files.ended, old)
    seen = observe(RunFiles(tmp_path), 1).ended
    assert seen is not None
    assert seen.lost == ()

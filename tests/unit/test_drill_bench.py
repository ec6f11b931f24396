"""The bench without processes: its table, its verdicts, its page, its figures, its settings."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose
from launch.drills.__main__ import main, write
from launch.drills.bench import Bench, Drill, Ran, Reference, Result, run_one
from launch.drills.lanes import Aside, lanes
from launch.drills.oracle.leftovers import processes_of
from launch.drills.reference import BATCH, write_experiment
from launch.drills.report import keep, merged, page, table
from launch.drills.runs import DrillFailed, Site
from launch.drills.soak import goodputs, lives
from launch.drills.table import DRILLS
from launch.drills.wandb_server import server
from trainer.config.explain import validate
from trainer.errors import Exit


def drill(**changes: Any) -> Drill:
    values = {
        "number": 3,
        "name": "damaged | files",
        "fault": "a bit",
        "promise": "found",
        "bound": "all",
        "tier": "U",
        "run": lambda bench: Result(2, "2 of 2"),
    }
    return Drill(**(values | changes))


def ran(**changes: Any) -> Ran:
    return Ran(drill(), Result(2, "2 of 2", **changes), 1.5, load=0.5)


def test_a_drill_holds_fails_or_is_late_and_only_a_busy_machine_excuses_the_last() -> None:
    assert ran().verdict == "held"
    assert ran(wrong=("x",)).verdict == "failed"
    assert ran(late=("x",)).verdict == "late"
    assert ran(late=("x",)).is_bad
    busy = Ran(drill(), Result(1, "", late=("x",)), 1.0, load=6.0)
    assert not busy.is_bad
    assert Ran(drill(), Result(1, "", wrong=("x",)), 1.0, load=6.0).is_bad
    assert Ran(drill(run=None, needs="a GPU"), None).verdict == "not run"


def test_a_drill_that_cannot_be_carried_out_has_failed(tmp_path: Path) -> None:
    def fail(bench: Bench) -> Result:
        raise DrillFailed("no ranks")

    found = run_one(Bench(Site(tmp_path)), drill(run=fail))
    assert found.verdict == "failed"
    assert found.result is not None
    assert found.result.wrong == ("no ranks",)


def test_what_a_drill_leaves_running_is_ended(tmp_path: Path) -> None:
    def forget(bench: Bench) -> Result:
        bench.site.command(
            [sys.executable, "-c", f"import time; time.sleep(600); {str(tmp_path)!r}"]
        )
        raise DrillFailed("and forgot it")

    with Site(tmp_path) as site:
        assert run_one(Bench(site), drill(run=forget)).verdict == "failed"
        assert not list(processes_of(tmp_path))


def test_what_a_session_prints_and_writes() -> None:
    session = [
        ran(figures={"damaged": 9.0, "noticed": 9.0}),
        ran(wrong=("step 4: loss 1 instead of 2\nmore",)),
        Ran(drill(number=20, part="b", run=None, needs="a GPU"), None),
        Ran(drill(), Result(1, "slow", late=("16 s",)), 2.0, load=4.0),
    ]
    text = table(session)
    assert "D3   held        1.5 s     0 cpu" in text
    assert "step 4: loss 1 instead of 2" in text
    assert "needs a GPU" in text
    assert "(4.0 processes wanted each core)" in text
    kept = [
        keep(one, short=False, date="2026-01-02", machine="2 cores")
        for one in session
        if one.result is not None
    ]
    rows = [one.drill for one in session]
    numbered = [replace(d, number=i) for i, d in enumerate(rows, 1)]
    labelled = [replace(k, label=f"D{i}") for i, k in zip((1, 2, 4), kept, strict=True)]
    written = page(numbered, labelled)
    assert "1 of 3 drills that ran held, 1 were right but late on a busy machine." in written
    assert "- damaged checkpoints noticed: 9 of 9" in written
    where = "2026-01-02, 2 s; 2 cores |"
    assert f"| D1 damaged \\| files | a bit | found | all | 2 of 2 | {where}" in written
    assert "FAILED: step 4: loss 1 instead of 2 more" in written
    assert (
        "| D3b damaged \\| files | a bit | found | all | not run here: needs a GPU |  |" in written
    )
    assert "slow; late: 16 s, with 4.0 processes a core" in written
    assert "not run yet" in page(numbered, [])


def test_a_short_form_does_not_replace_a_long_one_that_held() -> None:
    long = keep(ran(), short=False, date="1", machine="m")
    two_forms = drill(shortens=True)
    short = keep(replace(ran(), drill=two_forms), short=True, date="2", machine="m")
    failed = keep(replace(ran(wrong=("x",)), drill=two_forms), short=True, date="3", machine="m")
    old = merged([], [long])
    assert merged(old, [short]) == old
    assert merged(old, [failed])[0]["verdict"] == "failed"
    assert merged(merged([], [short]), [long]) == old


def test_every_number_of_the_table_is_there_once() -> None:
    labels = [one.label for one in DRILLS]
    assert len(set(labels)) == len(labels)
    assert all(one.run is not None or one.needs for one in DRILLS)


def test_drills_that_wait_come_first_with_others_beside_them_and_nobody_beside_the_rest() -> None:
    here, aside = lanes(DRILLS)
    assert {one.label for one in here + aside} == {one.label for one in DRILLS}
    assert len(here) + len(aside) == len(DRILLS)
    assert [one.pace for one in here] == sorted((one.pace for one in here), reverse=True)
    assert aside
    assert {one.pace for one in aside} == {"aside"}
    quick = [one for one in DRILLS if one.pace != "waits"]
    assert lanes(quick) == (quick, [])


def test_a_session_beside_this_one_that_fails_is_heard_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Aside([drill(number=99)], write=tmp_path / "page.md") as other:
        assert not other.wait()
    assert "no drill D99" in capfd.readouterr().err
    with Aside([], write=None) as other:
        assert other.wait()


def test_two_sessions_write_one_page_and_no_result_is_lost(tmp_path: Path) -> None:
    halves = [one for one in DRILLS if one.pace], [one for one in DRILLS if not one.pace]

    def put(drills: list[Drill]) -> None:
        for one in drills:
            write(tmp_path / "drills.md", [Ran(one, Result(1, "held"), 1.0)], short=False)

    with ThreadPoolExecutor() as pool:
        list(pool.map(put, halves))
    kept = json.loads((tmp_path / "drills.json").read_text())
    assert {one["label"] for one in kept} == {one.label for one in DRILLS}
    text = (tmp_path / "drills.md").read_text()
    assert f"{len(DRILLS)} of {len(DRILLS)} drills that ran held." in text


def test_a_drill_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["D99"]) == Exit.REFUSED
    assert "no drill D99; there is D1, " in capsys.readouterr().err


def test_the_reference_is_an_experiment_that_a_person_could_write(tmp_path: Path) -> None:
    conf = write_experiment(tmp_path)
    made = validate(compose(["+experiment=drill"], config_dirs=[str(conf)]).values)
    assert made.drills.enabled
    assert made.batch.global_batch_size == BATCH
    assert made.task.kind == "custom"


# --- goodput of a run, from its step lines -----------------------------------------------------


def lines(*attempts: tuple[int, int, int, float]) -> list[dict[str, Any]]:
    """(attempt, first step, steps, time of the end of the first): steps of 0.1 s."""
    return [
        {"attempt": a, "step": first + i, "time": at + 0.1 * i, "step_s": 0.1}
        for a, first, count, at in attempts
        for i in range(count)
    ]


def whole() -> Reference:
    return Reference("r", 20, {}, step_s=0.1, stall_s=0.0)


def test_lives_are_attempts_that_made_a_step() -> None:
    seen = lives(lines((1, 1, 7, 0.1), (3, 6, 15, 5.1)))
    assert [(round(s.first, 3), round(s.last, 3), s.steps) for s in seen] == [
        (0.1, 0.7, 7),
        (5.1, 6.5, 15),
    ]


def test_goodput_of_an_undisturbed_run_is_one_and_is_foretold() -> None:
    measured, foretold = goodputs(lines((1, 1, 20, 0.1)), whole(), steps=20)
    assert measured == pytest.approx(1.0)
    assert foretold == pytest.approx(1.0)


def test_goodput_of_an_interrupted_run_is_foretold_from_when_it_broke() -> None:
    """Seven steps, 4.3 s of outage, back to step 5 of a save: 2 of 22 steps are made again."""
    made = lines((1, 1, 7, 0.1), (2, 6, 15, 5.1))
    measured, foretold = goodputs(made, whole(), steps=20)
    assert measured == pytest.approx(2.0 / 6.5)
    assert foretold == pytest.approx(measured, abs=0.01)


# --- servers -----------------------------------------------------------------------------------


def status(url: str, *, timeout_s: float = 100.0) -> int:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        with e:
            return e.code
    except OSError:
        return 0


def test_servers_misbehave_as_they_are_told() -> None:
    seen = {}
    for mode in ("refused", "silent", "errors", "no key"):
        with server(mode) as url:  # type: ignore[arg-type]
            seen[mode] = status(url, timeout_s=0.3 if mode == "silent" else 100.0)
    assert seen == {"refused": 0, "silent": 0, "errors": 500, "no key": 401}
    with server("dies") as url:
        assert [status(url) for _ in range(5)] == [200, 200, 200, 0, 0]

"""The whole picture: train, lose a rank, resume, finish, export, check. `make smoke` shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.data import tiny_text_corpus
from trainer.errors import Exit
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.records.json_file import read_json, read_lines
from trainer.records.run_files import RunFiles

_ROOT = Path(__file__).resolve().parents[2]
_TEN_STEPS = (
    "debug=tiny",
    "run.name=smoke",
    "steps.total=10",
    "steps.save_every=3",
    "data=jsonl",
    "data.sources.files.paths=[corpus.jsonl]",
    "data.held_out_fraction=0.2",
    "data.num_workers=1",
    "data.tokenizer.vocab_size=300",
    "drills.enabled=true",
)


def _started(folder: Path, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
    print(f"\n$ longhaul {' '.join(arguments)}", flush=True)
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(_ROOT), ENVIRONMENT: fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    print(said, flush=True)
    return process.returncode, said


def _longhaul(folder: Path, *arguments: str) -> str:
    code, said = _ended(_started(folder, *arguments))
    assert code == Exit.DONE, said
    return said


def _losses(run: RunFiles, *, attempt: int) -> dict[int, float]:
    lines = read_lines(run.metrics) if run.metrics.exists() else []
    steps = [line for line in lines if line["kind"] == "step" and line["attempt"] == attempt]
    return {line["step"]: line["loss"] for line in steps}


def _kill_rank_1(run: RunFiles) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    pid = int(read_json(run.attempt(1).root / "pids.json")["1"])
    print(f"$ kill -9 {pid}", flush=True)
    os.kill(pid, signal.SIGKILL)


def test_a_run_that_loses_a_rank_goes_on_is_prolonged_exported_and_whole(tmp_path: Path) -> None:
    tiny_text_corpus(tmp_path, documents=60)
    run = RunFiles(tmp_path / "runs" / "smoke")
    # Rank 1 stands still in step 5 until it is killed, however late that is.
    still = Fault("step.begin", "sleep", rank=1, step=5, value=900, token=f"{tmp_path / 'still'}")
    training = ("train", f"run.root={run.root.parent}", *_TEN_STEPS)
    train = _started(tmp_path, *training, fault=as_text([still]))
    stands = tmp_path / "still.1"
    while train.poll() is None and not (stands.exists() and 4 in _losses(run, attempt=1)):
        time.sleep(0.01)
    _kill_rank_1(run)
    code, said = _ended(train)
    assert code == Exit.DONE, said
    assert "rank 1 was killed by signal 9 (SIGKILL); attempt 2 goes on from" in said

    # Saved at 3 in the background, lost after 4: it goes on from the newest checkpoint, by itself.
    before, after = _losses(run, attempt=1), _losses(run, attempt=2)
    assert min(after) in (1, 4)
    assert list(after) == list(range(min(after), 11))
    repeated = before.keys() & after.keys()
    assert {step: after[step] for step in repeated} == {step: before[step] for step in repeated}

    _longhaul(tmp_path, "resume", "smoke", "steps.total=11")
    assert list(_losses(run, attempt=3)) == [11]

    _longhaul(tmp_path, "checkpoint", "verify", "smoke")
    _longhaul(tmp_path, "export", "smoke", "--to", "exported")  # refuses unequal logits
    assert (tmp_path / "exported" / "config.json").exists()
    _longhaul(tmp_path, "evaluate", "exported")
    assert "smoke  finished" in _longhaul(tmp_path, "status", "smoke")

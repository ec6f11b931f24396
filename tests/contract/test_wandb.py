"""W&B that cannot be reached: the run does not wait for it, and loses nothing of it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from tests.helpers.reports import step_report
from trainer.observers.aside import Aside
from trainer.observers.guarded import Guarded
from trainer.records.redact import Redactor, redactor_of
from trainer.reports import GuardReport


def _wait_for_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it may give up, finish() of a busy machine returns before the file is whole."""
    monkeypatch.setattr("trainer.observers.wandb._FINISH_S", 300.0)


def test_wandb_that_cannot_be_reached_is_offline_and_no_key_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.observers.wandb import Wandb

    with socket.socket() as closed:  # bound, never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        key = "5ec7e7" + "0" * 34
        _wait_for_its_service(monkeypatch)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", key)

        def make() -> Wandb:
            assert heard.wait(300)  # training does not wait for it
            return Wandb(
                tmp_path / "wandb",
                mode="online",
                run_id="abc",
                name="r",
                project="p",
                entity=None,
                tags=(),
                attempt=2,
                config={"a": 1},
                redactor=Redactor(),
                init_s=1.0,
            )

        heard = threading.Event()
        observer = Aside("wandb", lambda: Guarded("wandb", make), close_s=300)
        observer.on_step(step_report(1))
        heard.set()
        observer.close()
    assert "W&B cannot be reached" in caplog.text
    files = [p for p in (tmp_path / "wandb").rglob("*") if p.is_file() and not p.is_symlink()]
    assert any(p.match("offline-run-*-abc/run-abc.wandb") for p in files)
    assert not any(key.encode() in p.read_bytes() for p in files)


def test_nothing_that_wandb_is_told_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings with keys are refused at start; this is for what gets past, and for what is said."""
    from trainer.observers.wandb import Wandb

    _wait_for_its_service(monkeypatch)
    secrets = ["planted-in-the-environment", "hf_" + "q" * 30, "sesame-of-a-url"]
    observer = Wandb(
        tmp_path / "wandb",
        mode="offline",
        run_id="abc",
        name=f"run-{secrets[0]}",
        project="p",
        entity=None,
        tags=(f"tag-{secrets[0]}",),
        attempt=1,
        config={
            "data": {"paths": [f"s3://user:{secrets[2]}@bucket/x"], secrets[1]: 1},
            "task": {"settings": {"extra": f"x {secrets[0]} {secrets[1]}"}},
        },
        redactor=redactor_of({"SOME_TOKEN": secrets[0]}),
        group=f"group-{secrets[0]}",
    )
    said = f"step 3 left out: {secrets[0]}"
    observer.on_guard(
        GuardReport(
            step=3,
            action="skip",
            kind="non_finite",
            said=said,
            loss=None,
            grad_norm=None,
            skipped=1,
            samples=(6, 9),
        )
    )
    observer.on_step(step_report(3))
    observer.close()
    files = [p for p in (tmp_path / "wandb").rglob("*") if p.is_file() and not p.is_symlink()]
    (stored,) = (p.read_bytes() for p in files if p.suffix == ".wandb")
    assert b"step 3 left out: [redacted]" in stored  # what is left is there
    assert b"group-[redacted]" in stored
    for secret in secrets:
        assert not [p for p in files if secret.encode() in p.read_bytes()], secret

"""Copies elsewhere as users meet them: settings without credentials, and commands with a URL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import values
from tests.helpers.object_model import run_with, uploader, with_attempt
from trainer.commands.checkpoint import main as checkpoint_command
from trainer.commands.remote import look
from trainer.config.explain import validate
from trainer.errors import ConfigError, Refused
from trainer.records.run_files import RunFiles
from trainer.storage.remote import open_store


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "bucket/prefix"}, "url: 'bucket/prefix' is no URL such as s3://bucket/prefix"),
        ({"url": "memory://x"}, "each process's own"),
        ({"url": "s3://me:pw@b/p"}, "a user, a password or a signature"),
        ({"url": "s3://b/p?X-Amz-Signature=1"}, "a user, a password or a signature"),
        ({"options": {"key": "AAAA"}}, "options.key: looks like a credential"),
        ({"options": {"secret": "AAAA"}}, "options.secret: looks like a credential"),
        (
            {"options": {"client_kwargs": {"aws_session_token": "x"}}},
            "options.client_kwargs.aws_session_token: looks like a credential",
        ),
        ({"options": {"endpoint_url": "http://a:b@c"}}, "a URL with a user in it is not kept"),
    ],
)
def test_settings_hold_no_credentials(section: dict[str, Any], said: str) -> None:
    given = values()
    given["checkpoint"]["remote"] |= section
    with pytest.raises(ConfigError) as caught:
        validate(given)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_endpoint_is_no_credential() -> None:
    given = values()
    options = {"endpoint_url": "http://127.0.0.1:9000", "anon": False}
    given["checkpoint"]["remote"]["options"] = options
    assert validate(given).checkpoint.remote.options == options


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://b/p", r"pip install 'longhaul\[gs\]'"),
        ("nonsense://b", "no store has URLs that begin with nonsense:"),
    ],
)
def test_a_store_that_cannot_be_used_here_is_refused(url: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        open_store(url)


@pytest.fixture
def shared(tmp_path: Path) -> Callable[..., str]:
    """The URL of copies of these steps on a disk."""

    def make(*steps: int) -> str:
        url = f"file://{tmp_path}/copies/run"
        (tmp_path / "copies").mkdir()
        run = run_with(tmp_path / "run", *steps)
        for step in steps:
            uploader(open_store(url), run, keep_last=9).upload(step)
        return url

    return make


def test_copies_are_listed_and_verified_by_their_url(
    shared: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = shared(1, 2)
    assert checkpoint_command(["list", url]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "1", "2"]
    assert checkpoint_command(["verify", url]) == 0
    assert capsys.readouterr().out.count("whole") == 2
    (file,) = (tmp_path / "copies").glob("run/checkpoints/step-00000002.*/rank-*")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert checkpoint_command(["verify", url, "2"]) == 78
    assert "does not match its checksum" in capsys.readouterr().out
    assert checkpoint_command(["list", f"file://{tmp_path}/none"]) == 2
    assert "no checkpoints here; give checkpoint.remote.url" in capsys.readouterr().err


def test_what_a_machine_with_nothing_needs_is_there(
    shared: Callable[..., str], tmp_path: Path
) -> None:
    url = shared(1)
    with_attempt(RunFiles(tmp_path / "run"), 1)
    found = look(url, {})
    assert found["run"] == json.loads((tmp_path / "run/run.json").read_text())
    assert (found["attempt"], found["plan"], found["problem"]) == (1, {"attempt": 1}, "")
    assert look(f"file://{tmp_path}/none", {})["run"] is None

"""Keys never get out, and what is no key stays as it is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.compose import compose
from trainer.config.sections.base import Section
from trainer.errors import ConfigError
from trainer.records.attempt import error_record
from trainer.records.redact import HIDDEN, RedactedStream, Redactor, redactor_of

# Put together here, or whoever scans sources for keys finds them.
_LOOKS = {
    "amazon": "AKIA" + "ABCDEFGHIJKLMNOP",
    "hugging face": "hf_" + "abcdefghijklmnopqrstuvwx",
    "github": "ghp_" + "abcdefghijklmnopqrstuvwx",
    "openai": "sk-" + "abcdefghijklmnopqrstuvwx",
    "slack": "xoxb-" + "1234567890-abcdef",
    "web token": "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2",
}
_CONTEXT = {
    "Authorization: Bearer abcdef123456": "abcdef123456",
    "Authorization: Basic dXNlcjpwYXNz": "dXNlcjpwYXNz",
    "api_key=0123456789012345678901234567890123456789": "0123456789",
    '{"password": "hunter22"}': "hunter22",
    "WANDB_API_KEY: 0123456789012345678901234567890123456789": "0123456789",
    "https://user:pass1234@host/path": "pass1234",
    "s3://id:geheim@bucket/x?secret_key=abcd1234": "abcd1234",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----": "MIIabc",
}
_INNOCENT = (
    "tokens_seen=123456 tokens/s 4,096; eos_token_id: 50256",
    "data.tokenizer.path=/models/tokenizer",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "run id 0123456789abcdef, commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "tcp://127.0.0.1:29500 and https://host:8080/path@2",
    "the key of step 5 is missing: 'master'",
    "secret sauce: none; password required",
    "2026-01-01 12:00:00 rank 3: step 100 loss 2.345 lr 3.0e-04",
    "secrets.token_hex(8)",
)


@pytest.mark.parametrize("kind", _LOOKS)
def test_what_looks_like_a_key_is_hidden(kind: str) -> None:
    said = Redactor().text(f"before {_LOOKS[kind]} after")
    assert said == f"before {HIDDEN} after"


@pytest.mark.parametrize("text", _CONTEXT)
def test_what_stands_where_keys_stand_is_hidden(text: str) -> None:
    said = Redactor().text(text)
    assert _CONTEXT[text] not in said
    assert HIDDEN in said
    assert Redactor().text(said) == said, "twice is once"


@pytest.mark.parametrize("text", _INNOCENT)
def test_what_is_no_key_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_what_the_process_was_given_is_hidden_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n login user\n password netrcpassword\n")
    environment = {
        "HOME": str(tmp_path),
        "MY_SERVICE_TOKEN": "plainlooking",
        "DB_PASSWORD": "corr3ct horse",
        "https_proxy": "http://user:proxypass@10.0.0.1:3128",
        "SSH_KEY_PATH": "/home/user/.ssh/id",
        "TOKENIZERS_PARALLELISM": "false-but-long",
        "WANDB_MODE": "offline",
        "X_TOKEN": "short",
        "Y_TOKEN": "offline",
    }
    redactor = redactor_of(environment)
    for hidden in ("plainlooking", "corr3ct horse", "proxypass", "netrcpassword"):
        assert redactor.text(f"x{hidden}y") == f"x{HIDDEN}y"
    for kept in ("/home/user/.ssh/id", "false-but-long", "offline", "short", "10.0.0.1:3128"):
        assert redactor.text(kept) == kept


def test_a_stream_hides_and_is_otherwise_itself() -> None:
    inner = io.StringIO()
    stream = RedactedStream(inner, Redactor(["plainlooking"]))
    print("a plainlooking key", file=stream)  # type: ignore[arg-type]
    stream.writelines(["b\n", "plainlooking\n"])
    assert inner.getvalue() == f"a {HIDDEN} key\nb\n{HIDDEN}\n"
    assert not stream.isatty()


def test_an_error_record_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_SECRET", "plainlooking")

    def fails() -> None:
        raise OSError("cannot reach https://me:plainlooking2@host: plainlooking")

    with pytest.raises(OSError, match="cannot reach") as caught:
        fails()
    record = error_record(caught.value, rank=0, step=1)
    text = json.dumps([record.message, record.traceback])
    assert "plainlooking" not in text
    assert "cannot reach https://" in record.message


_IN_SETTINGS = {
    "data.sources.files.paths=['https://me:plainlooking2@host/x']": "data.sources.files.paths.0",
    "run.root=runs/${oc.env:STORE_SECRET}": "run.root",
    "run.root=runs/plainlooking": "run.root",
    "run.root=" + _LOOKS["hugging face"]: "run.root",
    "observers.wandb.api_key=0123456789": "observers.wandb.api_key",
    "observers.wandb.tags=[a,{x: plainlooking}]": "observers.wandb.tags.1.x",
}


@pytest.mark.parametrize("override", _IN_SETTINGS)
def test_a_setting_that_holds_a_key_is_refused_without_saying_it(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_SECRET", "plainlooking")
    with pytest.raises(ConfigError) as refused:
        compose([override])
    said = str(refused.value)
    assert "plainlooking" not in said
    assert "0123456789" not in said
    assert "hf_abc" not in said
    assert _IN_SETTINGS[override] in {p.where for p in refused.value.problems}
    assert "is kept with the run" in said


def test_other_variables_may_be_named_in_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/local/scratch")
    assert (
        compose(["run.root=${oc.env:SCRATCH}/runs"]).values["run"]["root"] == "/local/scratch/runs"
    )


def test_the_command_complains_without_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORE_SECRET", "plainlooking")
    assert main(["plan", "plainlooking=https://me:pw123456@host", "'a=plainlooking"]) == 2
    said = capsys.readouterr()
    assert "plainlooking" not in said.err + said.out
    assert "pw123456" not in said.err + said.out
    assert HIDDEN in said.err
    assert main(["plainlooking"]) == 2
    assert capsys.readouterr().err.startswith(f"longhaul has no verb '{HIDDEN}'")


def test_a_rank_says_nothing_of_its_keys(tmp_path: Path) -> None:
    """What a rank prints, by print, logging or a traceback, passes the redactor."""
    program = (
        "import logging, os, sys\n"
        "from trainer.records.redact import hide_secrets\n"
        "hide_secrets(os.environ)\n"
        "logging.basicConfig(level=logging.WARNING, stream=sys.stdout)\n"
        "key = os.environ['STORE_SECRET']\n"
        "print('printed', key)\n"
        "logging.warning('logged %s', key)\n"
        "sys.stderr.write(f'written {key}\\n')\n"
        "raise OSError('raised ' + key)\n"
    )
    env = {"STORE_SECRET": "plainlooking", "PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300
    )
    assert "plainlooking" not in done.stdout + done.stderr
    for word in ("printed", "logged"):
        assert f"{word} {HIDDEN}" in done.stdout
    for word in ("written", "raised"):
        assert f"{word} {HIDDEN}" in done.stderr


def test_no_setting_is_named_so_that_it_could_never_be_given() -> None:
    """A path to a private key is none, but a setting of such a name was always refused."""
    import trainer.config.schema  # noqa: F401  (all sections there are)

    def below(section: type[Section]) -> list[type[Section]]:
        return [section, *(one for kind in section.__subclasses__() for one in below(kind))]

    names = {name: "given" for section in below(Section) for name in section.model_fields}
    assert "identity_file" in names
    assert not list(Redactor().where_secret(names))

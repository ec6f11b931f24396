"""Words for ssh, hosts from a file, and what agents and drivers say to each other."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from launch.backends.ssh import SshBackend, where
from launch.driving.answers import mark_in, table
from launch.driving.messages import Lines, Mixed, packed, packed_among_output
from launch.dry_run import DryRun, as_text
from launch.ssh.hosts import hosts_of
from launch.ssh.preflight import _named_twice, _refuse_without_key, problems_of, survey
from launch.ssh.survey import Answer
from launch.ssh.words import remote_command, selected, ssh_words
from tests.helpers.configs import config, values
from tests.helpers.hostile_words import WORDS
from trainer.config.explain import validate
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import ConfigError, Refused
from trainer.plan import RunPlan
from trainer.planning import make_plan


def ssh(**changed: object) -> SshLaunch:
    launch = config("launch=ssh", "launch.hosts=[a,b]").launch
    assert isinstance(launch, SshLaunch)
    return launch.model_copy(update=changed)


def complaint(**launch: object) -> str:
    made = values("launch=ssh", "launch.hosts=[a,b]")
    made["launch"] |= launch
    with pytest.raises(ConfigError) as caught:
        validate(made)
    return str(caught.value)


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [word for word in WORDS if "\0" not in word])
def test_a_remote_shell_gives_back_every_word_as_it_was(word: str, tmp_path: Path) -> None:
    command = remote_command(["printf", "%s", word], workdir=str(tmp_path))
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert done.stdout.decode() == word
    assert not list(tmp_path.iterdir())


def test_a_host_is_asked_without_questions_and_never_taken_on_trust() -> None:
    words = ssh_words(ssh(port=2222, user="u"), "a", "true", sockets=Path("/tmp/s"))
    assert words[-3:] == ["--", "a", "true"]
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ControlPath=/tmp/s/%C"):
        assert words[words.index(option) - 1] == "-o"
    assert words[words.index("-p") + 1] == "2222"
    assert words[words.index("-l") + 1] == "u"


def test_connections_are_not_shared_where_a_socket_has_no_room() -> None:
    words = ssh_words(ssh(), "a", "true", sockets=Path("/tmp/" + "x" * 60))
    assert not [word for word in words if word.startswith("Control")]


def test_only_named_variables_travel() -> None:
    here = {"WANDB_API_KEY": "k", "HOME": "/root", "NCCL_DEBUG": "INFO", "AWS_SECRET": "s"}
    assert selected(here, ["WANDB_*", "NCCL_DEBUG"]) == {
        "WANDB_API_KEY": "k",
        "NCCL_DEBUG": "INFO",
    }


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a;b", "$(x)", "a:22", "@a", ""])
def test_a_host_that_is_none(host: str) -> None:
    assert f"{host!r} is no name, address or user@name" in complaint(hosts=[host])


def test_a_host_with_a_port_or_by_ipv6_is_told_what_to_write_instead(tmp_path: Path) -> None:
    port = "try: launch.port=2222 for all hosts, or Port under Host node1 in ~/.ssh/config"
    assert port in complaint(hosts=["me@node1:2222"])
    assert "ranks do not meet over IPv6" in complaint(hosts=["[2001:db8::1]"])
    file = tmp_path / "hosts"
    file.write_text("node1:2222\n::1\n")
    with pytest.raises(ConfigError) as caught:
        hosts_of(ssh(hosts=(), hosts_file=str(file)))
    assert port in str(caught.value)
    assert "ranks do not meet over IPv6" in str(caught.value)


def test_options_that_are_not_the_users() -> None:
    said = complaint(options=["StrictHostKeyChecking=no"])
    assert "StrictHostKeyChecking cannot be set: a host whose key is not known is refused" in said
    assert "'-v' is no Name=value" in complaint(options=["-v"])
    assert "'A=b\\nC=d' is no Name=value" in complaint(options=["A=b\nC=d"])
    assert "'-l' is no name of a user" in complaint(user="-l")


def test_more_machines_at_least_than_at_most() -> None:
    with pytest.raises(ConfigError, match=r"3 machines at least, but resources\.nodes=2"):
        config("resources.nodes=2", "resources.min_nodes=3", "batch.micro_batch_size=1")


def test_hosts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    launch = ssh(hosts=(), hosts_file=str(file))
    with pytest.raises(ConfigError, match=r"hosts cannot be read \(No such file or directory\)"):
        hosts_of(launch)
    file.write_text("# nobody yet\n\n")
    with pytest.raises(ConfigError, match="names no host"):
        hosts_of(launch)
    file.write_text("a\n-oProxyCommand=x\nb c\n")
    with pytest.raises(ConfigError) as caught:
        hosts_of(launch)
    assert f"{file} line 2: '-oProxyCommand=x' is no name" in str(caught.value)
    assert f"{file} line 3: 'b c' is no name" in str(caught.value)
    file.write_text("a\nb\na\n")
    with pytest.raises(ConfigError, match="a stands there twice"):
        hosts_of(launch)
    file.write_text("a  # the good one\n\nuser@10.0.0.2\n")
    assert hosts_of(launch) == ("a", "user@10.0.0.2")
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")  # an editor on Windows
    assert hosts_of(launch) == ("a", "b")
    with pytest.raises(ConfigError, match="given twice"):
        hosts_of(ssh(hosts_file=str(file)))
    with pytest.raises(ConfigError, match="no host is named"):
        hosts_of(ssh(hosts=()))


# --- messages ---------------------------------------------------------------------------------


def test_orders_in_pieces_of_any_size() -> None:
    orders = [{"do": "beat"}, {"do": "meet", "host": "a", "port": 1}]
    data = b"".join(map(packed, orders)) + b"no message\n[1]\n"
    for size in (1, 3, 1000):
        lines = Lines()
        pieces = [data[k : k + size] for k in range(0, len(data), size)]
        assert [m for piece in pieces for m in lines.feed(piece)] == orders


def test_findings_among_what_a_rank_prints() -> None:
    message = {"hang": None, "x": "\x1e\n"}
    data = b"step 1 " + packed_among_output(message) + b"step 2\n\x1ebroken\n" + b"end"
    for size in (1, 2, 7, 1000):
        mixed, messages, output = Mixed(), [], b""
        for k in range(0, len(data), size):
            found, rest = mixed.feed(data[k : k + size])
            messages += found
            output += rest
        assert messages == [message]
        assert output == b"step 1 step 2\nend"


def test_the_words_of_a_command_hold_no_secret() -> None:
    launch = ssh(environment=("WANDB_*",))
    words = ssh_words(launch, "a", remote_command(["python", "x"], workdir="/w"), sockets=None)
    assert "WANDB" not in shlex.join(words) + json.dumps(words)


# --- what hosts answer ------------------------------------------------------------------------


def two_hosts() -> RunPlan:
    wanted = config(
        "launch=ssh",
        "launch.hosts=[a,b]",
        "resources.nodes=2",
        "resources.device=cpu",
        "batch.micro_batch_size=4",
    )
    return make_plan(
        wanted,
        attempt=1,
        run_id="",
        stores=(),
        device="cpu",
        cores=8,
        vocab_size_of_tokenizer=None,
    )


def test_a_key_that_is_not_there_is_no_matter_of_the_hosts(tmp_path: Path) -> None:
    wanted = config("launch=ssh", "launch.hosts=[a]", f"launch.identity_file='{tmp_path}/key'")
    assert isinstance(wanted.launch, SshLaunch)
    with pytest.raises(ConfigError, match=r"launch.identity_file: there is no file /.*/key"):
        survey(wanted.launch, (), 0)
    (tmp_path / "key.pub").touch()
    _refuse_without_key(wanted.launch)  # an agent may hold the other half


def test_spares_are_not_said_to_be_taken() -> None:
    assert where(["a", "b"], two_hosts()) == "a, b"
    assert where(["a", "b", "c"], two_hosts()) == "2 of a, b, c"


def test_a_dry_run_does_not_send_ranks_to_loopback() -> None:
    plan = two_hosts()
    submission = SshBackend().render(plan, run_folder="runs/x")
    text = as_text(DryRun(plan, submission, "runs/x", True, 0, False))
    assert "python -m launch.driver runs/x --attempt 1" in text
    assert "MASTER_ADDR=(the first node)" in text


def wrong(**changed: object) -> str:
    """What is said of a host that is well but for these."""
    here = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    said = {
        "python": sys.version.split()[0],
        "versions": {"longhaul": metadata.version("longhaul"), **here},
        "cores": 8,
        "gpus": 0,
        "address": "10.0.0.1",
        "port_problem": "",
        "folders": {"/shared": {"seen": True, "exists": True, "writable": True, "s": 0.0}},
    }
    plan = two_hosts()
    return "; ".join(f"{w} -> {fix}" for w, fix in problems_of(Answer("a", said | changed), plan))


def test_a_host_that_is_well() -> None:
    assert wrong() == ""


def test_what_is_wrong_with_a_host() -> None:
    none = {"longhaul": "", "torch": "", "deepspeed": "", "transformers": ""}
    assert "this package is not installed there -> pip install longhaul" in wrong(versions=none)
    assert "Python 3.1.4, but" in wrong(python="3.1.4")
    seen = {"seen": True, "exists": True, "writable": False, "s": 0.0}
    assert "/shared cannot be written there" in wrong(folders={"/shared": seen})
    gone = {"seen": False, "exists": False, "writable": False}
    assert "it has no folder /shared" in wrong(folders={"/shared": gone})
    assert "ssh comes in by IPv6 (fe80::1)" in wrong(address="fe80::1")
    assert "ssh comes in by 127.0.0.1, where no other host" in wrong(address="127.0.0.1")
    assert "ssh names no address of it -> launch.interface=eth0" in wrong(address="")


def test_a_machine_under_two_names_is_told() -> None:
    answers = [Answer("a", {"address": "10.0.0.1"}), Answer("b", {"address": "10.0.0.2"})]
    silent = [Answer("c", {}, "it is off"), Answer("d", {"address": ""}), Answer("e", {})]
    assert _named_twice([*answers, *silent]) == {}
    again = _named_twice([*answers, Answer("root@a", {"address": "10.0.0.1"})])
    ((what, _),) = again.pop("root@a")
    assert what == "it is the machine that a names (10.0.0.1)"
    assert not again


def test_a_folder_in_which_nothing_can_be_written_is_told_with_what_to_change() -> None:
    with pytest.raises(Refused, match=r"(?s)run.root, data.store_root: .*/proc .*try: run.root"):  # noqa: SIM117
        with mark_in(Path("/proc")):
            raise AssertionError


def test_one_host_is_one() -> None:
    said = table({"a": [("it is off", "ssh a true")]}, good=0, least=1, noun="hosts")
    assert said.startswith(
        "1 host is needed and 0 can take part; nothing was written\n  a  it is off"
    )

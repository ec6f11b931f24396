"""launch=ray without a cluster: what Ray is told, and what jobs are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.raying.cluster import bundle_of, environment_for_ray
from launch.raying.jobs import job_command, open_environment
from launch.raying.preflight import check, why
from tests.helpers.configs import config, values
from tests.helpers.hostile_words import WORDS
from trainer.config.explain import validate
from trainer.config.sections.ray import RayLaunch
from trainer.errors import ConfigError, Refused
from trainer.planning import make_plan


def ray(**changed: object) -> RayLaunch:
    launch = config("launch=ray").launch
    assert isinstance(launch, RayLaunch)
    return launch.model_copy(update=changed)


# --- what Ray is told -----------------------------------------------------------------------------


def test_whether_a_token_is_shown_is_never_left_to_ray(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    given = {"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_MODE": "disabled"}
    env = environment_for_ray(ray(), given)
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"]) == ("token", "secret")
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    env = environment_for_ray(ray(auth="disabled"), given)
    assert env["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in env
    env = environment_for_ray(ray(token_file=str(tmp_path / "token")), given)
    assert env["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert "RAY_AUTH_TOKEN" not in env  # Ray would prefer it
    with pytest.raises(Refused, match="there is no file"):
        environment_for_ray(ray(token_file=str(tmp_path / "none")), given)


def test_what_ranks_take_of_a_node() -> None:
    assert bundle_of(ray(), ranks=4, device="cpu") == {"CPU": 4.0}
    assert bundle_of(ray(), ranks=8, device="cuda") == {"CPU": 8.0, "GPU": 8.0}
    parts = ray(cpus_per_rank=0.5, gpus_per_rank=0.5, per_node={"fast_disk": 1})
    assert bundle_of(parts, ranks=1, device="cuda") == {"CPU": 0.5, "GPU": 0.5, "fast_disk": 1.0}


def test_ranks_of_one_run_do_not_share_a_gpu() -> None:
    wanted = config("launch=ray", "launch.gpus_per_rank=0.5", "resources.device=cuda")
    plan = make_plan(
        wanted.model_copy(
            update={"resources": wanted.resources.model_copy(update={"ranks_per_node": 2})}
        ),
        attempt=1,
        run_id="",
        stores=(),
        device="cuda",
        cores=8,
        vocab_size_of_tokenizer=None,
    )
    with pytest.raises(ConfigError, match="ranks of one run cannot share a GPU"):
        check(plan)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", "--head"),
        ("address", "head"),
        ("dashboard", "head:8265"),
        ("dashboard", "http://user:word@head:8265"),
        ("auth", "auto"),
        ("submit", "client"),
        ("cpus_per_rank", 0),
        ("per_node", {"a b": 1}),
        ("per_node", {"disk": -1}),
        ("silent_s", 1),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    made = values("launch=ray")
    made["launch"][name] = value
    with pytest.raises(ConfigError, match=rf"launch\.{name}"):
        validate(made)


# As Ray 2.60 says it; only the first of an error's ancestors names the token.
_SAID = {
    "is of another version: Ray: 2.59.0; Python: 3.12.1; Ray: 2.60.0; Python: 3.11.7": [
        "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n"
        "    Python: 3.12.1\nThis process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n"
        "    Python: 3.11.7\n"
    ],
    "does not take the token": [
        "ConnectionError: Failed to connect to Ray cluster at head:6379",
        "RuntimeError: ... see: https://docs.ray.io/en/latest/ray-security/token-auth.html",
    ],
    "this machine is no node of the Ray cluster": [
        "raylet_ipc_client.cc:85: Failed to connect to socket at address:/tmp/ray/sockets/raylet"
    ],
    "no Ray cluster is known on this machine": [
        "ConnectionError: Could not find any running Ray instance. Please specify ..."
    ],
    "Ray is not installed here": ["ModuleNotFoundError: No module named 'ray'"],
    "cannot be used: OSError: what nobody knew": ["OSError: what nobody knew"],
}


@pytest.mark.parametrize("ours", _SAID)
def test_what_ray_says_is_said_in_our_words(ours: str) -> None:
    assert ours in why(ray(address="head:6379"), _SAID[ours])


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [word for word in WORDS if "\0" not in word])
def test_a_job_gets_every_word_as_it_was(word: str, tmp_path: Path) -> None:
    program = "import sys; sys.stdout.write(sys.argv[1])"
    argv = ["python", "-S", "-c", program, word]
    command = job_command(argv, ray(python=sys.executable), workdir=str(tmp_path))
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert done.stdout == word.encode()
    assert not list(tmp_path.iterdir())


def test_a_job_is_given_nothing_secret() -> None:
    env = {"WANDB_API_KEY": "k", "HF_TOKEN": "t", "WANDB_MODE": "offline", "NCCL_DEBUG": "INFO"}
    given, kept = open_environment(env)
    assert given == {"WANDB_MODE": "offline", "NCCL_DEBUG": "INFO"}
    assert kept == ["HF_TOKEN", "WANDB_API_KEY"]

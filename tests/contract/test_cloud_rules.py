"""Words that go to other people's tools are what they claim to be, or are refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from launch.backends.table import backend_of
from launch.base import Submission
from launch.cloud.carried import VARIABLE, carried_by, carried_text, read_carried
from launch.cloud.kuberay_manifest import MANIFEST
from launch.cloud.names import cluster_name, job_name
from launch.cloud.sky_task import TASK
from launch.cloud.tool import ask
from launch.node.ranks_spec import RANKS_FILE
from tests.helpers.cloud import KUBERAY, RAY_UP, RUN_ID, SKY, plan_for
from tests.helpers.configs import config, values
from tests.helpers.hostile_words import WORDS
from trainer.config.explain import validate
from trainer.config.sections.cloud import KubeRayLaunch, RayUpLaunch, SkyLaunch
from trainer.errors import ConfigError, Refused
from trainer.plan import RunPlan

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KINDS = {
    "sky": (SKY, SkyLaunch),
    "kuberay": (KUBERAY, KubeRayLaunch),
    "ray_up": (RAY_UP, RayUpLaunch),
}
TEXTS = [
    (kind, name)
    for kind, (_, section) in KINDS.items()
    for name, field in section.model_fields.items()
    if field.annotation in (str, str | None) and (kind, name) != ("kuberay", "package")
]


@pytest.mark.parametrize(("kind", "name"), TEXTS, ids=[f"{k}.{n}" for k, n in TEXTS])
def test_a_hostile_setting_arrives_as_it_is_or_is_refused(kind: str, name: str) -> None:
    plain = _parsed(_submission(kind, name, _harmless(name)))
    accepted = 0
    for word in WORDS:
        try:
            submission = _submission(kind, name, word)
        except ConfigError:
            continue
        accepted += 1
        found = _parsed(submission)
        assert [k for k, _ in found] == [k for k, _ in plain], word
        changed = [(a, b) for (_, a), (_, b) in zip(plain, found, strict=True) if a != b]
        for before, after in changed:
            assert _same_but(before, after, _harmless(name), word), (word, after)
    assert accepted < len(WORDS)


REFUSED = [
    ("sky", "environment", ["A-B"], "'A-B' is no name of a variable"),
    ("sky", "mounts", {"../x": "s3://b"}, "'../x' is no full path of a machine"),
    ("sky", "mounts", {"/x": "s3://b /c"}, "'s3://b /c' is not of the form s3://bucket/prefix"),
    ("sky", "mounts", {"/x": "--help"}, "'--help' would be read as an option"),
    ("sky", "volumes", {"/x": "a b"}, "'a b' is not of the form my-volume"),
    ("sky", "run_root", "runs", "'runs' is no full path of a machine"),
    ("sky", "package", "longhaul", "'longhaul' is not of the form dist/longhaul-0.1.0"),
    ("sky", "package", "a @ git+https://somebody@host/x@abc", "a user or a token in it"),
    ("sky", "infra", "", "is empty; null means that it is not asked for"),
    ("sky", "setup", ["a\nb"], "holds a control character"),
    ("kuberay", "node_selector", {"a b": "c"}, "'a b' is not of the form kind=gpu"),
    ("kuberay", "run_root", "~/runs", "a volume is mounted at a full path"),
    ("kuberay", "package", "longhaul==0.1.0", "nothing is installed into pods"),
    ("kuberay", "shm_gib", 64, "64 GiB of shared memory leave nothing of 64 GiB"),
    ("kuberay", "environment", ["A"], "the values come from a Secret of Kubernetes"),
    ("kuberay", "namespace", "", "try: launch.namespace=training"),
    ("ray_up", "token_file", "token", "'token' is no full path"),
]


@pytest.mark.parametrize(("kind", "name", "value", "said"), REFUSED)
def test_what_cannot_be_is_said_with_the_setting(
    kind: str, name: str, value: Any, said: str
) -> None:
    given = values(*KINDS[kind][0])
    given["launch"][name] = value
    with pytest.raises(ConfigError) as refused:
        validate(given)
    assert said in str(refused.value)
    assert "launch." in str(refused.value)


@pytest.mark.parametrize(
    "package", ["'longhaul==0.1.0'", "'a @ git+https://h/x@0a1b'", "d/a-1.whl"]
)
def test_a_package_that_is_pinned_is_taken(package: str) -> None:
    plan = plan_for(config(*SKY, f"launch.package={package}"))
    setup = yaml.load(backend_of("sky").render(plan, run_folder="x").files[TASK], _LOADER)["setup"]
    last = shlex.split(setup.splitlines()[-1])
    assert last[:5] == ["python3", "-m", "pip", "install", "--quiet"]
    assert len(last) == 6  # one package, whatever its name holds


def test_true_is_a_label() -> None:
    plan = plan_for(config(*KUBERAY, "launch.node_selector={cloud.google.com/gke-spot: true}"))
    text = backend_of("kuberay").render(plan, run_folder="x").files[MANIFEST]
    (workers,) = yaml.load(text, _LOADER)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    selector = workers["template"]["spec"]["nodeSelector"]
    assert selector == {"cloud.google.com/gke-spot": "true"}


@pytest.mark.parametrize("word", WORDS)
def test_settings_arrive_as_they_are_and_look_like_nothing_else(word: str) -> None:
    plan = _with_prompt(plan_for(config(*SKY)), word)
    text = carried_text(carried_by(plan))
    found = read_carried(text)
    assert found.config["evals"]["sample_prompt"] == word
    assert found.run_id == RUN_ID
    assert not set(text) & set("$`'\n;&|<>()*?!#~%@=\x1b")
    assert text.isascii()


def test_settings_that_no_variable_can_hold_are_refused() -> None:
    with pytest.raises(Refused, match="characters; 100,000 can be sent"):
        carried_text(carried_by(_with_prompt(plan_for(config(*SKY)), "a" * 100_000)))


def test_settings_fit_one_word_of_a_command_however_often_they_are_quoted() -> None:
    """As `ray job submit --runtime-env-json` gets them on a shell's line."""
    prompt, longest = 25_000, 131_072  # the kernel's limit of one word
    text = carried_text(carried_by(_with_prompt(plan_for(config(*SKY)), "a" * 80_000)))
    assert len(json.dumps(json.dumps(text))) < longest
    with pytest.raises(Refused, match="characters; 100,000 can be sent"):
        carried_text(carried_by(_with_prompt(plan_for(config(*SKY)), '"' * prompt)))
    said = ask(["true", "a" * longest], timeout_s=10.0)
    assert (said.code, said.why) == (None, "true cannot be started (Argument list too long)")


def test_what_nobody_sent_is_refused() -> None:
    with pytest.raises(Refused, match=f"{VARIABLE} is not what a submission writes"):
        read_carried('{"run_id": "x"}')


def test_on_the_machine_its_own_folder_and_its_own_device_count() -> None:
    carried = carried_by(plan_for(config(*SKY, "resume.mode=must"), attempt=3))
    assert carried.config["run"]["root"] == "~/longhaul"
    assert carried.config["launch"] == {"kind": "local", "grace_s": 25.0}
    assert carried.config["resources"]["device"] == "cuda"  # never the CPU in silence
    assert carried.config["resume"]["mode"] == "auto"
    assert carried.submission.endswith("-a3")


def test_names_are_what_kubernetes_and_clouds_take() -> None:
    for name in ("first-run", "A" * 64, "_", "2026", "x..y", "Z-"):
        plan = plan_for(config(*KUBERAY, f"run.name={name}"), attempt=12345)
        made = job_name(plan)
        assert len(made) <= 47
        assert made[0].isalpha()
        assert made == made.lower()
        assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert "--" not in cluster_name(plan)


# --- reading what was rendered -----------------------------------------------------------------


def _with_prompt(plan: RunPlan, text: str) -> RunPlan:
    evals = plan.config.evals.model_copy(update={"sample_prompt": text})
    return plan.model_copy(update={"config": plan.config.model_copy(update={"evals": evals})})


def _submission(kind: str, name: str, value: str) -> Submission:
    given = values(*KINDS[kind][0])
    given["launch"][name] = value
    plan = plan_for(validate(given))
    return backend_of(kind).render(plan, run_folder="runs/first-run")


def _harmless(name: str) -> str:
    known = {
        "run_root": "/plain",
        "token_file": "/plain",
        "package": "dist/plain-1.whl",
        "cpus": "7",
        "memory_gib": "7",
        "ray_version": "9.9.9",
        "run_bucket": "s3://plain",
    }
    return known.get(name, "plain")


def _parsed(submission: Submission) -> list[tuple[str, str]]:
    """(place, text) of every word of every command and every value of every file."""
    found: list[tuple[str, str]] = []
    for number, argv in enumerate((submission.argv, *submission.then)):
        found += [(f"{number}.{i}", word) for i, word in enumerate(argv)]
    for name, text in submission.files.items():
        if name != RANKS_FILE:
            found += _leaves(yaml.load(text, Loader=_LOADER))
    return found


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for i, (key, inner) in enumerate(value.items()):
            yield f"{prefix}.{i}", f"key {key}"
            yield from _leaves(inner, f"{prefix}.{i}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{prefix}.{i}")
    else:
        yield prefix, str(value)


def _same_but(before: str, after: str, harmless: str, word: str) -> bool:
    """Whether only that value differs: as the whole text, in it, or as words of a shell line."""
    if before.startswith(('{"config"', "# read by")):
        return True  # what is sent along, judged by a test of its own
    if before.replace(harmless, word) == after:
        return True
    shell = [w.replace(harmless, word) for w in _words(before)]
    return shell == _words(after)


def _words(line: str) -> list[str]:
    """Of a line of shell, without what is sent along."""
    return [w for w in shlex.split(line) if not w.startswith('{"env_vars"')]

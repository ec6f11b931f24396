"""Rented machines with tools that only write down their calls: what is asked of them, and when."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.backends.table import backend_of
from launch.cloud.carried import read_carried
from launch.cloud.sky_task import TASK
from launch.run.job_record import JobState, read_job
from launch.run.run_folder import attempts, find
from tests.helpers.cloud import KUBERAY, RAY_UP, SKY, Tools, plan_for
from tests.helpers.configs import config
from tests.helpers.hostile_words import WORDS
from trainer.errors import Refused
from trainer.records.run_files import AttemptFiles

# Without copies: whether there are any would be asked of the store first.
_KEPT = ("launch.keeps_run_root=true", "checkpoint.remote.url=null")
_OFFER = {"cloud": "AWS", "accelerator_name": "H100", "accelerator_count": 8, "price": 50.0}
_OFFERS = json.dumps({"H100": [_OFFER | {"spot_price": 20.0, "instance_type": "p5"}]})
_LONG_KEY = "a-key-that-stands-in-no-file-and-no-command"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(_LONG_KEY)
    made = Tools(tmp_path / "bin", "sky", "kubectl", "ray", "rsync")
    return made.alone_on_path(monkeypatch)


def _train(kind: tuple[str, ...], *more: str) -> int:
    return main(["train", *kind, *_KEPT, *more])


def _files(name: str = "first-run") -> AttemptFiles:
    return attempts(find(name))[-1]


def _everything_under(folder: Path) -> str:
    parts = [str(p) for p in folder.rglob("*")]
    texts = [p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()]
    return "\n".join(parts + texts)


def test_a_key_pair_of_ones_own(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    key = Path("mine.pem").absolute()
    key.write_text("a key")
    more = (f"launch.identity_file={key}", "launch.key_name=mine", "--dry-run")
    assert _train(RAY_UP, *more) == 0
    said = capsys.readouterr().out
    assert f"ssh_private_key: {key}" in said
    assert "KeyName: mine" in said


# --- refused before anything is written ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tool", "said"),
    [
        (SKY, "sky", "launch=sky calls `sky`, which is not on PATH; install SkyPilot in an"),
        (KUBERAY, "kubectl", "launch=kuberay calls `kubectl`, which is not on PATH; install it"),
        (RAY_UP, "ray", "launch=ray_up calls `ray`, which is not on PATH; pip install 'ray"),
        (RAY_UP, "rsync", "launch=ray_up calls `rsync`, which is not on PATH; Ray sends files"),
    ],
)
def test_a_tool_that_is_missing(
    kind: tuple[str, ...], tool: str, said: str, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    (tools.folder / tool).unlink()
    assert _train(kind) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("kind", "override", "said"),
    [
        (SKY, "launch.image=null", "launch.package: without an image that has this package"),
        (SKY, "launch.package=nowhere/x-1.whl", "there is no file nowhere/x-1.whl to send"),
        (SKY, "launch.keeps_run_root=false", "nothing of the run would outlive the machine"),
        (SKY, "launch.gpu=null resources.device=cuda", "launch.gpu: resources.device=cuda needs"),
        (SKY, "resources.device=cpu", "resources.device=cpu would leave H100 unused"),
        (SKY, "launch.environment=[NOT_SET_HERE]", "NOT_SET_HERE is to be passed on, but it is"),
        (SKY, "launch.mounts={/data: ./nowhere}", "there is no nowhere to send"),
        (
            SKY,
            "resources.nodes=2 launch.keeps_run_root=false batch.micro_batch_size=1",
            "launch.run_root: 2 machines need one folder that all of them see",
        ),
        (KUBERAY, "launch.image=null", "launch.image: pods need an image"),
        (
            KUBERAY,
            "resources.nodes=2 batch.micro_batch_size=1",
            "data.store_root: 'stores' would be on each machine's own disk, and 2 share the data",
        ),
        (KUBERAY, "resources.device=cpu launch.cpus_per_node=4", "4 cores hold no 8 ranks"),
        (RAY_UP, "launch.region=null", "launch.region: aws does not choose one"),
        (RAY_UP, "launch.worker_type=null", "launch.worker_type: aws does not choose one"),
        (RAY_UP, "launch.provider=gcp", "launch.project: gcp does not choose one"),
        (RAY_UP, "launch.provider=gcp", "launch.head_type: m5.large is no machine of gcp"),
        (RAY_UP, "launch.worker_type=a2-highgpu-8g", "a2-highgpu-8g is no machine of aws"),
        (RAY_UP, "launch.zone=eu-west-1b", "launch.zone: eu-west-1b is not in us-east-1"),
        (RAY_UP, "launch.token_file=/nowhere", "launch.token_file: there is no file /nowhere"),
        (RAY_UP, "launch.environment_file=/nowhere", "launch.environment_file: there is no file"),
        (RAY_UP, "launch.identity_file=/nowhere", "launch.identity_file: there is no file"),
        (RAY_UP, "launch.key_name=k", "the private half of the key pair k is needed"),
    ],
)
def test_what_only_a_person_can_give(
    kind: tuple[str, ...],
    override: str,
    said: str,
    tools: Tools,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [override] if "{" in override else override.split()
    assert _train(kind, *more) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
    assert not tools.calls


def test_a_gpu_that_sky_does_not_know(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    tools.answer(("sky gpus list H100:8", 0, "{}"))
    assert _train(SKY) == 2
    assert "sky knows no machine with 8 x H100" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_manifest_that_the_cluster_refuses(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.answer(("kubectl apply --dry-run=server", 1, 'unknown field "spec.x"'))
    assert _train(KUBERAY) == 2
    said = 'the cluster does not take the RayJob: unknown field "spec.x"'
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_cluster_that_is_not_reached(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    """kubectl's own words advise to turn its checks off."""
    why = 'failed to download openapi: Get "http://localhost:8080/": dial tcp: connection refused'
    tools.answer(("kubectl apply --dry-run=server", 1, f"{why}; turn off with --validate=false"))
    assert _train(KUBERAY) == 2
    said = capsys.readouterr().err
    assert "kubectl reaches no cluster (connection refused); install it and point it at" in said
    assert "--validate=false" not in said
    why = 'failed calling webhook "mrayjob.kb.io": dial tcp: connection refused'
    tools.answer(("kubectl apply --dry-run=server", 1, why))
    assert _train(KUBERAY) == 2
    assert f"the cluster does not take the RayJob: {why}" in capsys.readouterr().err


def test_a_secret_without_the_key_for_which_pods_would_wait(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.answer(("kubectl get secret keys", 0, "A B"))
    wanted = ("launch.variables_from=keys", "launch.environment=[A,HF_TOKEN]")
    assert _train(KUBERAY, *wanted) == 2
    said = "launch.variables_from=keys: the Secret has no key HF_TOKEN; add it there"
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
    asked = next(call for call in tools.calls if "secret" in call)
    assert asked[-1] == "go-template={{range $key, $value := .data}}{{$key}} {{end}}"
    tools.answer(("kubectl get secret keys", 0, "A HF_TOKEN"))
    assert _train(KUBERAY, *wanted, "--dry-run") == 0


def test_a_secret_that_is_not_there(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    tools.answer(("kubectl get secret", 1, 'secrets "keys" not found'))
    assert _train(KUBERAY, "launch.variables_from=keys", "launch.environment=[A]") == 2
    assert 'launch.variables_from=keys: secrets "keys" not found' in capsys.readouterr().err


# --- handed over, asked, stopped ------------------------------------------------------------------


def test_a_managed_job_from_submission_to_stop(
    tools: Tools, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", _LONG_KEY)
    row = {"job_id": 7, "job_name": "x", "status": "RUNNING", "infra": "AWS (us-east-1)"}
    tools.answer(
        ("sky gpus list", 0, _OFFERS),
        ("sky jobs launch", 0, "\x1b[32mJob submitted, ID: 7\x1b[0m"),
        ("sky jobs queue", 0, json.dumps([row], indent=2)),
    )
    assert _train(SKY, "launch.environment=[WANDB_API_KEY]") == 0
    said = capsys.readouterr()
    assert "sky: 8 x H100 spot from $20.00 an hour" in said.err
    assert "first-run: job 7 is with SkyPilot" in said.out
    files, backend = _files(), backend_of("sky")
    launched = next(call for call in tools.calls if call[1:3] == ["jobs", "launch"])
    assert launched[-3:-1] == ["--secret", "WANDB_API_KEY"]
    assert Path(launched[-1]) == Path("runs/first-run/attempts/0001") / TASK
    record = read_job(files)
    assert record is not None
    assert (record.kind, record.job) == ("sky", "7")
    assert [job.state for job in backend.jobs([files])] == [JobState.RUNNING]
    backend.stop(files)
    assert tools.calls[-1] == ["sky", "jobs", "cancel", "--yes", "7"]
    assert _LONG_KEY not in _everything_under(Path("runs")) + json.dumps(tools.calls)


@pytest.mark.parametrize(
    ("word", "state"),
    [("SUCCEEDED", "finished"), ("CANCELLED", "stopped"), ("FAILED_SETUP", "failed")],
)
def test_how_it_ended_there_is_told_here(
    word: str, state: str, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run folder is on the machines, so that no file here says it."""
    tools.answer(("sky gpus list", 0, _OFFERS), ("sky jobs launch", 0, "Job submitted, ID: 7"))
    assert _train(SKY) == 0
    row = {"job_id": 7, "job_name": "x", "status": word, "failure_reason": "for a reason"}
    tools.answer(("sky jobs queue", 0, json.dumps([row])))
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["state"] == state
    assert "for a reason" in said["why"]


def test_one_question_for_all_runs(tools: Tools) -> None:
    tools.answer(("sky gpus list", 0, _OFFERS), ("sky jobs launch", 0, "Job submitted, ID: 7"))
    assert _train(SKY) == 0
    before = len(tools.calls)
    backend_of("sky").jobs([_files()] * 20)
    assert len(tools.calls) == before + 1


def test_a_submission_whose_number_nobody_saw_is_known_by_its_name(tools: Tools) -> None:
    tools.answer(("sky gpus list", 0, _OFFERS), ("sky jobs launch", 0, "done"))
    assert _train(SKY) == 0
    record = read_job(_files())
    assert record is not None
    assert record.job.startswith("lh-first-run-")
    backend_of("sky").stop(_files())
    assert tools.calls[-1] == ["sky", "jobs", "cancel", "--yes", "--name", record.job]


def test_a_cluster_of_one_job(tools: Tools) -> None:
    tools.answer(("sky launch", 0, "Job submitted, ID: 1"), ("sky gpus list", 0, _OFFERS))
    assert _train(SKY, "launch.managed=false") == 0
    record = read_job(_files())
    assert record is not None
    row = {"job_id": 1, "job_name": "x", "status": "SUCCEEDED"}
    tools.answer(("sky queue", 0, json.dumps({record.cluster: [row]})))
    assert backend_of("sky").jobs([_files()])[0].state is JobState.ENDED
    backend_of("sky").stop(_files())
    assert tools.calls[-1] == ["sky", "cancel", "--yes", record.cluster, "1"]


def test_a_submission_that_fails_says_why_and_leaves_no_running_attempt(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.answer(("sky gpus list", 0, _OFFERS), ("sky jobs launch", 1, "No cloud is enabled"))
    assert _train(SKY) == 2
    assert "sky jobs launch failed: No cloud is enabled" in capsys.readouterr().err
    assert _files().ended.exists()


def test_nobody_who_answers_is_not_a_failed_job(tools: Tools) -> None:
    tools.answer(("sky gpus list", 0, _OFFERS), ("sky jobs launch", 0, "Job submitted, ID: 7"))
    assert _train(SKY) == 0
    tools.answer(("sky", 1, "the API server does not answer"))
    assert backend_of("sky").jobs([_files()])[0].state is JobState.UNKNOWN
    with pytest.raises(Refused, match="sky does not stop job 7: the API server does not answer"):
        backend_of("sky").stop(_files())


def test_a_rayjob_from_submission_to_stop(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(KUBERAY, "launch.namespace=training", "launch.context=here") == 0
    assert "in training is with Kubernetes" in capsys.readouterr().out
    record = read_job(_files())
    assert record is not None
    assert record.cluster == "training"
    head = {"head": {"serviceName": "x-head-svc"}}
    status = {"jobDeploymentStatus": "Running", "jobId": "j-1", "rayClusterStatus": head}
    job = {"metadata": {"name": record.job}, "status": status}
    tools.answer(
        (
            "kubectl --context=here --namespace=training get rayjobs",
            0,
            json.dumps({"items": [job]}),
        ),
        ("kubectl --context=here --namespace=training get rayjob ", 0, json.dumps(job)),
    )
    assert backend_of("kuberay").jobs([_files()])[0].state is JobState.RUNNING
    backend_of("kuberay").stop(_files())
    assert tools.calls[-1][3:6] == ["exec", "service/x-head-svc", "--"]


def test_a_cluster_of_ray_up_from_submission_to_stop(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(RAY_UP) == 0
    assert "the head stays until: ray down" in capsys.readouterr().out
    up, submit = (call for call in tools.calls if call[0] == "ray")
    assert up[:4] == ["ray", "up", "--yes", "--no-config-cache"]
    record = read_job(_files())
    assert record is not None
    assert record.job in shlex.split(submit[-1])
    tools.answer(("ray exec", 0, f"Status for job '{record.job}': RUNNING"))
    assert backend_of("ray_up").jobs([_files()])[0].state is JobState.RUNNING
    backend_of("ray_up").stop(_files())
    words = shlex.split(tools.calls[-1][-1])
    assert words[words.index("job") + 1] == "stop"
    assert words[-1] == record.job
    assert _LONG_KEY not in _everything_under(Path("runs")) + json.dumps(tools.calls)


def test_what_ray_said_of_a_job_that_is_over_is_known_without_its_head(tools: Tools) -> None:
    assert _train(RAY_UP) == 0
    record = read_job(_files())
    assert record is not None
    tools.answer(("ray exec", 0, f"Job '{record.job}' succeeded"))
    (first,) = backend_of("ray_up").jobs([_files()])
    tools.answer(("ray exec", 1, "RuntimeError: Head node of cluster not found!"))  # ray down
    assert backend_of("ray_up").jobs([_files()]) == [first]
    assert (first.state, first.verdict) == (JobState.ENDED, "finished")


def test_a_cluster_that_does_not_come_up_has_no_job_and_is_tried_again(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.answer(("ray up", 1, "Failed to setup head node."))
    assert _train(RAY_UP) == 2
    assert "machines may be up: ray down" in capsys.readouterr().err
    assert not [call for call in tools.calls if call[:2] == ["ray", "exec"]]
    tools.answer()
    assert main(["resume", "first-run"]) == 0
    assert "is on its way" in capsys.readouterr().out
    assert _files().number == 2


def test_machines_that_may_be_up_are_named_when_handing_over_fails(
    tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.answer(("ray exec", 1, "ssh: connect to host 10.0.0.1 port 22: timed out"))
    assert _train(RAY_UP) == 2
    said = capsys.readouterr().err
    assert "ray exec --no-config-cache failed" in said
    assert "machines may be up: ray down runs/first-run/attempts/0001" in said


@pytest.mark.parametrize("kind", [SKY, KUBERAY, RAY_UP], ids=["sky", "kuberay", "ray_up"])
def test_a_dry_run_writes_nothing_and_hands_nothing_over(
    kind: tuple[str, ...], tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(kind, "--dry-run") == 0
    assert "would run" in capsys.readouterr().out
    assert not Path("runs").exists()
    handing_over = (["jobs", "launch"], ["up", "--yes"], ["apply", "--validate=strict"])
    assert not [call for call in tools.calls if call[1:3] in handing_over]


@pytest.mark.parametrize("word", [*WORDS[:30], 'it\'s "$(id)" `id` \\\\ $HOME'])
def test_a_shell_on_the_head_passes_the_settings_on_as_they_are(word: str, tmp_path: Path) -> None:
    """The command of `ray exec` is run by bash, as Ray does, with an interpreter that tells."""
    plan = plan_for(config(*RAY_UP))
    evals = plan.config.evals.model_copy(update={"sample_prompt": word})
    plan = plan.model_copy(update={"config": plan.config.model_copy(update={"evals": evals})})
    submission = backend_of("ray_up").render(plan, run_folder="runs/x")
    tools = Tools(tmp_path / "bin", "python3")
    env = {"PATH": f"{tools.folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", submission.then[0][-1]], env=env, check=True, timeout=300)
    (call,) = tools.calls
    sent = json.loads(call[call.index("--runtime-env-json") + 1])["env_vars"]["LONGHAUL_JOB"]
    assert read_carried(sent).config["evals"]["sample_prompt"] == word

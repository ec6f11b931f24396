"""Settings of rented machines that could be started, and tools that only write down their calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launch.cloud.carried import carried_by, carried_text
from launch.nodes_of import device_of
from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch
from trainer.plan import RunPlan
from trainer.planning import make_plan

RUN_ID = "0123456789abcdef"
_BOTH = ("resources.ranks_per_node=8", "batch.micro_batch_size=2")
_COPIES = "checkpoint.remote.url=s3://bucket/copies"
SKY = (
    *_BOTH,
    _COPIES,
    "launch=sky",
    "launch.gpu=H100",
    "launch.infra=aws/us-east-1",
    "launch.image=docker:registry.example.org/longhaul",
)
KUBERAY = (
    *_BOTH,
    "launch=kuberay",
    "launch.image=registry.example.org/longhaul",
    "launch.volume_claim=runs",
)
RAY_UP = (
    *_BOTH,
    _COPIES,
    "launch=ray_up",
    "launch.region=us-east-1",
    "launch.worker_type=p4d.24xlarge",
    "launch.image=ami-0123456789abcdef0",
)

_TOOL = """\
#!{python}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
told = here / "answers.json"
answers = json.loads(told.read_text()) if told.exists() else []
line = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
for begins, code, out in answers:
    if line.startswith(begins):
        print(out)
        sys.exit(code)
"""


class Tools:
    """A folder of executables. `answers`: (beginning of a call, exit code, what it prints)."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        folder.mkdir()
        for name in names:
            path = folder / name
            path.write_text(_TOOL.format(python=sys.executable))
            path.chmod(0o755)

    def answer(self, *answers: tuple[str, int, str]) -> None:
        (self.folder / "answers.json").write_text(json.dumps(answers))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def alone_on_path(self, monkeypatch: pytest.MonkeyPatch) -> Tools:
        """Nothing else is found: no real tool answers for one that is missing here."""
        monkeypatch.setenv("PATH", str(self.folder))
        monkeypatch.delenv("LONGHAUL_SKY_PYTHON", raising=False)
        return self


def plan_for(config: Config, *, attempt: int = 1) -> RunPlan:
    return make_plan(
        config,
        attempt=attempt,
        run_id=RUN_ID,
        stores=(),
        # Other places are asked what their nodes have, which is not what these tests are about.
        device=device_of(config) if isinstance(config.launch, CloudLaunch) else "cpu",
        cores=8,
        vocab_size_of_tokenizer=None,
    )


def without_settings(text: str, plan: RunPlan) -> str:
    """What is sent along would change with every setting that anybody adds."""
    sent = carried_text(carried_by(plan))
    for form in (sent, json.dumps(sent)[1:-1]):
        text = text.replace(form, "@SETTINGS@")
    return text

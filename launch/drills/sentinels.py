"""D37: a sentinel in every place where a key may lie; then every byte that a run leaves is read."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

from launch.compose import compose
from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE
from launch.drills.oracle.leftovers import processes_of
from trainer.config.explain import validate
from trainer.errors import ConfigError
from trainer.faultpoints import Fault

_KEYS = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "GITHUB_TOKEN",
    "GOOGLE_API_KEY",
    "OPENAI_API_KEY",
    "MY_PASSWORD",
)
_NASTY = (
    "a;b a&&b a|b $(id) `id` a>b a<b a*b ? [a] {a,b} ~ ~root ! # % ^ & ( ) ' \" \\ / // . .. ../a "
    "a/../b /etc -n --name =a a=b , : @"
)
_BLANKS = ["", " ", "a b", "a\nb", "a\n#SBATCH --x", "a\tb", "a\0b"]
_NAMES = [*_NASTY.split(), *_BLANKS, "x" * 300, "\u0430bc", "a\u202eb"]


def secrets_and_shells(bench: Bench) -> Result:
    """D37. A run that fails once and goes on; nothing of it holds a key, no name is a command."""
    site, name = bench.site, "d37"
    sentinel = f"sentinel{os.getpid()}x{bench.seed}"
    home = site.folder / "home"
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {sentinel}n\n")
    env = {key: f"{sentinel}{number}" for number, key in enumerate(_KEYS)}
    env |= {"HOME": str(home), "https_proxy": f"http://user:{sentinel}p@127.0.0.1:9"}
    fault = Fault("step.end", "raise", rank=1, step=4, token=site.token("d37"))
    before = site.look(name)
    running = site.begin("train", name, "observers.wandb.mode=offline", env=env, faults=[fault])
    site.until(name, running, step=2)
    shown = " ".join(command for _, command in processes_of(site.run(name).root))
    last = running.wait()
    wrong = ["a key is on a command line"] if sentinel in shown else []
    wrong += ["a key was printed"] if sentinel in last.out + last.err else []
    holding = list(_holding(site.run(name).root, sentinel.encode()))
    holding += list(_holding(site.temporary, sentinel.encode()))
    wrong += [f"{path} holds a key" for path in holding]
    wrong += site.left_over(name, before)
    wrong += [] if last.code == DONE.exit_code else [f"it returned {last.code}: {last.err[-300:]}"]
    names = list(_accepted())
    wrong += [f"run.name={text!r} is accepted" for text in names]
    places = len(_KEYS) + 2
    refused = f"{len(_NAMES) - len(names)} of {len(_NAMES)} names refused"
    said = f"{len(holding)} files hold one of {places} keys; {refused}"
    return Result(places + len(_NAMES), said, tuple(wrong))


def _holding(folder: Path, needle: bytes) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and needle in path.read_bytes():
            yield path


def _accepted() -> Iterator[str]:
    """Names that a shell or a file system could take for something else, and that are allowed."""
    values = compose([]).values
    for text in _NAMES:
        made = copy.deepcopy(values)
        made["run"]["name"] = text
        try:
            validate(made)
        except ConfigError:
            continue
        yield text

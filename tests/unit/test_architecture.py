"""The rules of the tree that the import contracts in pyproject.toml cannot say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_FILES = sorted(
    path.relative_to(_ROOT)
    for room in ("trainer", "launch")
    for path in (_ROOT / room).rglob("*.py")
)

_BUDGET = 400
_BUDGETS = {"trainer/loop.py": 250, "trainer/worker.py": 150}

# Who may read or write os.environ outside launch/, and why.
_ENVIRONMENT = {
    "trainer/checkpoint/link.py": "hands it on to the writer process",
    "trainer/checkpoint/peer/process.py": "what a drill planned for this process",
    "trainer/checkpoint/upload_process.py": "so that none of its keys is said",
    "trainer/checkpoint/writer_process.py": "what a drill planned for this process",
    "trainer/doctor/rank.py": "hands it to the checks; what the scheduler calls this node",
    "trainer/dist/heartbeat.py": "LONGHAUL_PULSE: the page that a watcher reads",
    "trainer/dist/meeting.py": "where the ranks meet, and who serves that place",
    "trainer/dist/place.py": "Place.from_env: who this process is",
    "trainer/dist/world.py": "names the address in a message when ranks do not meet",
    "trainer/engine/bootstrap.py": "sets what DeepSpeed reads, before it is imported",
    "trainer/engine/async_io.py": "the same, to build its operator",
    "trainer/observers/table.py": "so that none of its keys is sent to W&B",
    "trainer/records/attempt.py": "so that none of its keys stands in an error",
    "trainer/records/built_ops.py": "LONGHAUL_OPS: where built operators lie",
    "trainer/engine/deepspeed.py": "names the accelerator before DeepSpeed is imported",
    "trainer/storage/remote.py": "so that no key stands in what a store says",
    "trainer/standby.py": "gives a forked rank its environment",
    "trainer/worker.py": "hands on what a drill planned for this process",
}

_TORCH_DISTRIBUTED = ("trainer/dist/", "trainer/engine/")

_HEAVY = {"torch", "deepspeed", "transformers", "datasets", "ray", "wandb", "optuna"}
_HYDRA = {"hydra", "omegaconf"}
_HYDRAS_DOOR = {"launch.compose", "launch.settings.conf_source"}

# All that the launcher may know of the trainer.
_LAUNCH_KNOWS = {
    *("errors", "faultpoints", "records", "config", "capacity", "drawing"),
    *("plan", "planning", "epochs", "changes", "consequences", "fit", "health"),
}


def test_the_launcher_imports_no_vendor_that_is_slow_to_load() -> None:
    modules = [_module(path) for path in _FILES if path.parts[0] == "launch"]
    light = [name for name in modules if name not in _HYDRAS_DOOR]
    program = (
        "import importlib, json, sys\n"
        "loaded = []\n"
        f"for names in ({light!r}, {modules!r}):\n"
        "    for name in names: importlib.import_module(name)\n"
        "    loaded.append(sorted(name for name in sys.modules if '.' not in name))\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    without_compose, everything = map(set, json.loads(done.stdout))
    assert not without_compose & (_HEAVY | _HYDRA)
    assert not everything & _HEAVY


def test_the_launcher_knows_only_the_light_part_of_the_trainer() -> None:
    found = {
        f"{path}: {name}"
        for path in _FILES
        if path.parts[0] == "launch"
        for name in _names(path).imported
        if name.startswith("trainer.") and name.split(".")[1] not in _LAUNCH_KNOWS
    }
    assert not found


def test_a_file_stays_within_its_budget_of_lines() -> None:
    """Tests too: what is over it is to be split along a seam."""
    tests = (path.relative_to(_ROOT) for path in (_ROOT / "tests").rglob("*.py"))
    lines = {str(p): len((_ROOT / p).read_text("utf-8").splitlines()) for p in (*_FILES, *tests)}
    assert not {path: n for path, n in lines.items() if n > _BUDGETS.get(path, _BUDGET)}


def test_no_file_is_named_for_being_left_over() -> None:
    left_over = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [str(path) for path in _FILES if path.name in left_over]


def test_the_environment_is_read_in_named_files_only() -> None:
    readers = {
        path.as_posix()
        for path in _FILES
        if path.parts[0] == "trainer" and _touches_environment(_names(path))
    }
    assert readers <= set(_ENVIRONMENT)


def test_torch_distributed_is_used_by_dist_and_engine_only() -> None:
    users = {path.as_posix() for path in _FILES if _uses_torch_distributed(_names(path))}
    assert not {user for user in users if not user.startswith(_TORCH_DISTRIBUTED)}


def test_source_files_are_ascii_but_for_text_that_people_read() -> None:
    """Names and comments; strings may greet anybody in their own script."""
    strange = []
    for path in _FILES:
        text = (_ROOT / path).read_text(encoding="utf-8")
        if text.isascii():
            continue
        in_strings = "".join(
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        if {c for c in text if not c.isascii()} - set(in_strings):
            strange.append(str(path))
    assert not strange


# --- reading source --------------------------------------------------------------------------


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class _Names:
    """`imported`: dotted names; `dotted`: every `a.b` in the code whose left side is a name."""

    imported: frozenset[str]
    dotted: frozenset[str]


@cache
def _names(path: Path) -> _Names:
    """Of each file once, for all rules. The names are kept, not the trees."""
    tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"), filename=str(path))
    return _Names(frozenset(_imported(tree)), frozenset(_dotted(tree)))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module != "trainer":
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _dotted(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def _touches_environment(names: _Names) -> bool:
    return bool({"os.environ", "os.getenv", "os.putenv"} & (names.dotted | names.imported))


def _uses_torch_distributed(names: _Names) -> bool:
    used = names.dotted | names.imported
    return any(f"{name}.".startswith("torch.distributed.") for name in used)

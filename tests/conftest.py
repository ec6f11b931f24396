"""What every test can rely on: a quiet environment, a pool of ranks, golden files."""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.ranks import RankPool

_EXPECTED = Path(__file__).parent / "golden" / "expected"


def _quiet_environment() -> None:
    """Set before anything is imported, so that child processes and ranks inherit it.

    One thread a process (the tests start many), no network, nothing written to a home folder, and
    no trace of a scheduler's job that the tests themselves may be running in.
    """
    # Ranks are killed here in every way, and a step daemon of Slurm's was seen to crash: how a
    # process ended is told by its exit code, and no core file is left in the current folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    scratch = tempfile.mkdtemp(prefix="longhaul-tests-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "RAY_", "WANDB_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
        ):
            del os.environ[name]
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A killed build leaves its lock in this folder, and all later ones wait for it for ever.
        "TORCH_EXTENSIONS_DIR": f"{scratch}/torch_extensions",
        "HF_HOME": f"{scratch}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": f"{scratch}/wandb",
        "WANDB_CONFIG_DIR": f"{scratch}/wandb",
        "WANDB_DATA_DIR": f"{scratch}/wandb",
        "RAY_USAGE_STATS_ENABLED": "0",
        # DeepSpeed 0.19 calls collectives by names that torch 2.13 calls old, once per call.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }


_quiet_environment()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update", action="store_true", help="rewrite golden files; then read git diff"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if Path("/dev/nvidia0").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> RankPool:
    """Worlds of 1 to 3 ranks: `ranks.run(2, fn, *args)`."""
    return RankPool(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def _elsewhere(request: pytest.FixtureRequest, _empty_folder: Path) -> Iterator[None]:
    """Unit and golden tests run in an empty folder, whatever runs and stores lie in this one.

    The others stay: processes that they start find the tests' own modules in the current folder.
    """
    if request.path.parent.name not in ("unit", "golden"):
        yield
        return
    with contextlib.chdir(_empty_folder):
        yield
    assert not list(_empty_folder.iterdir()), "a test left files in the current folder"


@pytest.fixture(scope="session")
def _empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text equals tests/golden/expected/NAME; --update writes it."""

    def check(name: str, text: str) -> None:
        path = _EXPECTED / name
        if request.config.getoption("--update"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"no golden file {name}: run this test with --update and read it"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; --update rewrites it"

    return check

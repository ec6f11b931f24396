"""What is rendered, judged by the library that will read it, where that is installed.

Each library is asked in a process of its own: SkyPilot has its own environment (its pins and ours
do not go together), and Ray needs a second to import.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from launch.cloud.tool import Answer, ask
from trainer.errors import Refused

_TIMEOUT_S = 120.0
SKY_PYTHON = "LONGHAUL_SKY_PYTHON"
_SKY = """\
import sys
try:
    import sky
except ImportError:
    sys.exit(9)
try:
    sky.Task.from_yaml(sys.argv[1])
except (ValueError, TypeError, sky.exceptions.SkyPilotExcludeArgsBaseException) as e:
    sys.exit(str(e))
"""
_NOT_INSTALLED = 9


def sky_python() -> str | None:
    """The interpreter that has SkyPilot: of LONGHAUL_SKY_PYTHON, or the one that `sky` runs in."""
    given = os.environ.get(SKY_PYTHON)
    if given:
        return given
    command = shutil.which("sky")
    if command is None:
        return None
    try:
        with Path(command).open("rb") as file:
            first = file.readline(4096).decode(errors="replace").strip()
    except OSError:
        return None
    interpreter = first.removeprefix("#!").strip()
    is_python = first.startswith("#!") and "python" in Path(interpreter).name
    return interpreter if is_python and Path(interpreter).exists() else None


def check_sky(text: str) -> bool:
    """Whether SkyPilot was there to judge. Raises: Refused with what it has against it."""
    python = sky_python()
    if python is None:
        return False
    quiet = {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    return _judged(text, [python, "-c", _SKY], quiet, what="the SkyPilot task")


def check_ray(text: str) -> bool:
    """Whether Ray was there to judge. Raises: Refused with its words if it does not like it."""
    argv = [sys.executable, "-m", "launch.cloud.ray_schema"]
    return _judged(text, argv, {}, what="the cluster file")


def _judged(text: str, argv: list[str], env: dict[str, str], *, what: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
        path = Path(folder) / "rendered.yaml"
        path.write_text(text, encoding="utf-8")
        answer: Answer = ask([*argv, str(path)], timeout_s=_TIMEOUT_S, env=env)
    if answer.code in (None, _NOT_INSTALLED):
        return False
    if answer.code != 0:
        raise Refused(f"{what} is refused by the library that reads it: {answer.why}")
    return True

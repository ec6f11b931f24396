"""A server of moto's, which speaks AWS's protocols, in a virtual environment of its own.

It is made once by pip in a folder for temporary files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.nodes import skip

_PINNED = "moto[server]==5.2.5"


def moto_python() -> str:
    """The Python of moto's environment; skips with its reason where pip cannot make it."""
    folder = Path(tempfile.gettempdir()) / f"longhaul-tests-{os.getuid()}" / "moto-server"
    python = folder / "bin/python"
    if not python.exists():
        partial = folder.with_name(f"moto-server.{os.getpid()}")
        made = _told([sys.executable, "-m", "venv", str(partial)])
        if made.returncode == 0:
            pip = [str(partial / "bin/python"), "-m", "pip", "install", "--quiet", _PINNED]
            made = _told(pip)
        if made.returncode != 0:
            skip(f"pip cannot install {_PINNED}: {made.stderr.strip()[-200:]}")
        partial.rename(folder)
    return str(python)


def _told(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)

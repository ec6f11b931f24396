"""Asks a Ray cluster what it is, in a process of its own: Ray stays out of the command's.

    python -m launch.raying.survey '{"launch": {...}, "folders": {...}, "packages": [...], ...}'

Prints one line, "longhaul " and JSON. What Ray itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.raying.cluster import Cluster, RayNode
from trainer.config.sections.ray import RayLaunch

_TURN_S = 1.0


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["launch"]["submit"] == "job":  # the token is where Ray itself finds it there
        asked["launch"]["token_file"] = None
    try:
        said = survey(RayLaunch.model_validate(asked["launch"]), asked)
    except Exception as e:  # whatever Ray raises: the command says it in its own words
        said = {"error": _chain(e)}
    os.write(1, b"longhaul " + json.dumps(said).encode() + b"\n")
    os._exit(0)  # Ray takes its time to go


def survey(launch: RayLaunch, asked: Mapping[str, Any]) -> dict[str, Any]:
    """All nodes with what they have; those with room for a bundle are asked for more."""
    cluster = Cluster.connect(launch)
    deadline = time.monotonic() + launch.wait_nodes_s
    while True:
        nodes = cluster.nodes()
        usable = [node for node in nodes if _fits(node, asked["bundle"])]
        if len(usable) >= asked["nodes"] or time.monotonic() >= deadline:
            break
        time.sleep(_TURN_S)
    words = [launch.python, launch.workdir, asked["script"], json.dumps(asked["question"])]
    answers = cluster.call(usable, look, words, patience_s=asked["patience_s"])
    return {
        "nodes": [_about(node, answers.get(node.id)) for node in nodes],
        "usable": [node.name for node in usable],
        "waited_s": launch.wait_nodes_s,
    }


def look(python: str | None, workdir: str | None, script: str, question: str) -> tuple[str, str]:
    """(what launch/ssh/seen.py says on a node, what went wrong). Sent there as code: a node without
    this package answers too.
    """
    import os
    import subprocess
    import sys

    if workdir is not None and not os.path.isdir(workdir):  # noqa: PTH112
        return "", f"it has no folder {workdir}"
    try:
        done = subprocess.run(
            [python or sys.executable, "-E", "-", question],
            input=script.encode(),
            capture_output=True,
            timeout=60.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return "", f"{python or sys.executable}: {e}"
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _fits(node: RayNode, bundle: Mapping[str, float]) -> bool:
    return not node.is_leaving and all(node.total.get(k, 0.0) >= n for k, n in bundle.items())


def _about(node: RayNode, answer: Sequence[str] | None) -> dict[str, Any]:
    return {
        "name": node.name,
        "total": dict(node.total),
        "is_leaving": node.is_leaving,
        "answer": list(answer) if answer is not None else None,
    }


def _chain(error: BaseException | None) -> Sequence[str]:
    """An error and those it came from: Ray says why in the first of them only."""
    found = []
    while error is not None:
        found.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return found


if __name__ == "__main__":
    main()

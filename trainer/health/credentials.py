"""Which credentials are there: names of variables and of files, never what is in them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding, Needs
from trainer.records.redact import is_secret_variable

_FILES = (
    ".netrc",
    ".cache/huggingface/token",
    ".aws/credentials",
    ".config/gcloud/application_default_credentials.json",
    ".kube/config",
    ".docker/config.json",
)
_WANDB = ("WANDB_API_KEY",)
_LISTED = 8


def gather_credentials(env: Mapping[str, str]) -> dict[str, Any]:
    """Files are looked at from outside; none is opened."""
    home = Path(env.get("HOME", "/"))
    places = [home / name for name in _FILES]
    if env.get("NETRC"):
        places[0] = Path(env["NETRC"])
    return {
        "variables": sorted(name for name, value in env.items() if value and _is_secret(name)),
        "files": [one for one in map(_seen, places) if one],
    }


def judge_credentials(facts: Facts, needs: Needs) -> Iterator[Finding]:
    variables, files = facts["variables"], facts["files"]
    named = [*variables, *(one["path"] for one in files)]
    more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
    yield Finding("credentials", (", ".join(named[:_LISTED]) + more) if named else "none")
    for one in files:
        if one["others_may_read"]:
            fix = f"chmod 600 {one['path']}"
            yield Finding("credentials", f"{one['path']} can be read by others", "warn", fix)
    has_netrc = any(one["path"].endswith("netrc") for one in files)
    if needs.wandb_online and not has_netrc and not set(_WANDB) & set(variables):
        fix = "wandb login on that machine, WANDB_API_KEY, or observers.wandb.mode=offline"
        yield Finding("credentials", "W&B is to be online, and there is no key for it", "warn", fix)


def _is_secret(name: str) -> bool:
    return is_secret_variable(name)


def _seen(path: Path) -> dict[str, Any] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    others = bool(found.st_mode & (stat.S_IRGRP | stat.S_IROTH))
    return {"path": str(path), "others_may_read": others}

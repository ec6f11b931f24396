"""What a place for copies may be called. Credentials are no settings: settings are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLACE = re.compile(r"([a-z][a-z0-9+.-]*):/{1,3}\S+")
_USER = re.compile(r"://[^/\s]*@")
_CREDENTIAL = re.compile(
    r"(?:^|_)(?:key|secret|token|password|passwd|credentials?|username|user|sas|signature|auth"
    r"|bearer|connection_string)(?:$|_)"
)
_IN_MEMORY = ("memory",)


def refuse_unless_place(url: str) -> None:
    """Raises: ValueError in a sentence."""
    match = _PLACE.fullmatch(url)
    if match is None:
        raise ValueError(f"{url!r} is no URL such as s3://bucket/prefix or file:///mnt/copies")
    if match[1] in _IN_MEMORY:
        raise ValueError("memory: is each process's own, and gone with it; name a place that stays")
    if _USER.search(url) or "?" in url or "#" in url:
        raise ValueError(
            "a URL with a user, a password or a signature in it is not kept; credentials come from "
            "the environment or the machine's role"
        )


def refuse_credentials(options: Mapping[str, Any]) -> None:
    """Raises: ValueError naming the first option that looks like one."""
    for where, value in _leaves(options):
        if any(_CREDENTIAL.search(part.lower()) for part in where.split(".")):
            raise ValueError(
                f"{where} looks like a credential; these are never settings: they come from the "
                "environment (AWS_ACCESS_KEY_ID ...) or the machine's role"
            )
        if isinstance(value, str) and _USER.search(value):
            raise ValueError(f"{where} is a URL with a user in it; leave user and password out")


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    inner = (
        values.items()
        if isinstance(values, Mapping)
        else enumerate(values)
        if isinstance(values, list | tuple)
        else ()
    )
    if not inner and prefix:
        yield prefix, values
    for key, value in inner:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))

"""What a place for copies may be called. Credentials are no settings: settings are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.schema import Config
from trainer.errors import Problem

_URL = "checkpoint.remote.url"
_OPTIONS = "checkpoint.remote.options"
_PLACE = re.compile(r"([a-z][a-z0-9+.-]*)://\S+")
_USER = re.compile(r"://[^/\s]*@")
_CREDENTIAL = re.compile(
    r"(?:^|_)(?:key|secret|token|password|passwd|credentials?|username|user|sas|signature|auth"
    r"|bearer|connection_string)(?:$|_)"
)
_THEIR_PLACE = "credentials come from the environment (AWS_ACCESS_KEY_ID ...) or the machine's role"


def remote_problems(config: Config) -> Iterator[Problem]:
    section = config.checkpoint.remote
    if section.url is not None and (what := _wrong_with(section.url)):
        yield Problem(_URL, what, f"{_URL}=s3://bucket/prefix")
    for where, value in _leaves(section.options):
        if any(_CREDENTIAL.search(part.lower()) for part in where.split(".")):
            what = f"looks like a credential, and settings are kept; {_THEIR_PLACE}"
            yield Problem(f"{_OPTIONS}.{where}", what, f"{_OPTIONS}={{}}")
        elif isinstance(value, str) and _USER.search(value):
            what = f"a URL with a user in it is not kept; {_THEIR_PLACE}"
            yield Problem(f"{_OPTIONS}.{where}", what, "the same without user and password")


def _wrong_with(url: str) -> str:
    match = _PLACE.fullmatch(url)
    if match is None:
        return f"{url!r} is no URL such as s3://bucket/prefix or file:///mnt/copies"
    if match[1] == "memory":
        return "memory: is each process's own, and gone with it; name a place that stays"
    if _USER.search(url) or "?" in url or "#" in url:
        return f"a URL with a user, a password or a signature in it is not kept; {_THEIR_PLACE}"
    return ""


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        items = [(str(i), value) for i, value in enumerate(values)]
    else:
        yield prefix, values
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)

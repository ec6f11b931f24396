"""Keys, tokens and passwords are kept out of everything that is written or shown.

Two things are known: what this process was given (environment, .netrc), which is replaced wherever
it turns up, and what keys look like. Settings are never redacted: one that holds a key is refused
(`where_secret`), for settings are kept with the run and a changed one would mean another run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

HIDDEN = "[redacted]"
_SHORTEST = 6  # characters of a value that is replaced wherever it stands
# NAME_KEY, API_TOKEN, PASSWORD: a word of the name. Not TOKENIZERS_..., tokens, or eos_token_id.
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|secret_?key|private_?key|secret|password|passwd|passphrase"
    r"|credentials?|auth_?token|access_?token|api_?token)(?:$|[_.-])",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PAT)(?:_ID)?(?:$|_)",
    re.IGNORECASE,
)
_COMMON = {"offline", "online", "disabled", "default", "public", "nobody", "localhost"}
_URL = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/@'\"]{1,512}:[^\s/@'\"]{1,512}@")
_LOOKS = (
    re.compile(r"\bAKIA[0-9A-Z]{16}\b|\bASIA[0-9A-Z]{16}\b"),  # Amazon
    re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),  # Hugging Face
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}\b"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"),
    re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}\b"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),  # JSON web token
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    ),
)
_BEARER = re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"((?:api[_-]?key|access[_-]?key|secret[_-]?key|secret|password|passwd|passphrase"
    r"|auth[_-]?token|access[_-]?token|api[_-]?token)[\"']?\s{0,4}[=:]\s{0,4}[\"']?)"
    r"(?!\[redacted\])[^\s\"',;&}]{4,}",
    re.IGNORECASE,
)


class Redactor:
    """`known`: secrets that are replaced wherever they stand."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        found = sorted({k for k in known if len(k) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(k) for k in found)) if found else None

    def text(self, text: str) -> str:
        """The text without what is known, or looks like, a secret."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if "://" in text:
            text = _URL.sub(rf"\1{HIDDEN}@", text)
        for pattern in _LOOKS:
            text = pattern.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
        return _ASSIGNED.sub(rf"\1{HIDDEN}", text)

    def values(self, value: Any) -> Any:
        """Plain data with every text in it, names too, passed through `text`."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.values(name): self.values(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(one) for one in value]
        return value

    def has(self, text: str) -> bool:
        return self.text(text) != text

    def where_secret(self, values: Any, prefix: str = "") -> Iterator[str]:
        """Dotted names of the settings that hold a secret, or are named for one and hold a text."""
        if isinstance(values, Mapping):
            for key, value in values.items():
                where = f"{prefix}.{key}" if prefix else str(key)
                named = _SECRET_NAME.search(str(key)) and isinstance(value, str) and value
                if named or self.has(str(key)):
                    yield self.text(where)
                else:
                    yield from self.where_secret(value, where)
        elif isinstance(values, list | tuple):
            for i, value in enumerate(values):
                yield from self.where_secret(value, f"{prefix}.{i}")
        elif isinstance(values, str) and self.has(values):
            yield prefix


def redactor_of(environment: Mapping[str, str]) -> Redactor:
    """Of a process with this environment: its secrets, and the passwords in its .netrc."""
    known = set(_of_variables(environment))
    home = environment.get("HOME", "")
    netrc = environment.get("NETRC") or (f"{home}/.netrc" if home else "")
    if netrc:
        known |= set(_of_netrc(Path(netrc)))
    return Redactor(known)


def is_secret_variable(name: str) -> bool:
    return bool(_SECRET_VARIABLE.search(name))


def _of_variables(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret_variable(name) and _is_telling(value):
            yield value
        yield from re.findall(r"://[^\s/@:]*:([^\s/@]+)@", value)


def _is_telling(value: str) -> bool:
    """Whether it may be replaced wherever it stands: a path or a usual word would be nonsense."""
    return not value.startswith(("/", "~", ".")) and value.lower() not in _COMMON


def _of_netrc(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[: 1 << 20]
    except OSError:
        return
    words = text.split()
    for name, value in pairwise(words):
        if name == "password":
            yield value


def hide_secrets(environment: Mapping[str, str]) -> None:
    """What this process says from here on, to stdout and stderr, passes a redactor."""
    redactor = redactor_of(environment)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream, redactor))


class RedactedStream:
    """A text stream that writes what `redactor` leaves. Everything else is the stream's own."""

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor

    def write(self, text: str) -> int:
        self._stream.write(self._redactor.text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

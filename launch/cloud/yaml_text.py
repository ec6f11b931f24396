"""The door to PyYAML for what is rendered: quoting is the library's business, never ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_WIDTH = 1_000_000  # nothing is folded: a command is one line


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Text of several lines as a block, which people can read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(document: Mapping[str, Any], *, about: str) -> str:
    """A document of plain values in block style, keys in their order. `about`: its first comment,
    words of ours alone."""
    body = yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=_WIDTH
    )
    return f"# {about}\n{body}"

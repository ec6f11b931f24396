"""Chat templates: a model's own jinja, rendered in a sandbox, the same every time. The one door.

What a template marks with {% generation %} comes back as places in the text.
Source: transformers 5, utils/chat_template_utils.py (which functions a template may call).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
# Private-use characters stand where a marked place begins and ends, and are taken out afterwards.
_BEGIN, _END = "\uf8f0", "\uf8f1"
MARKS = (_BEGIN, _END)

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# for tokenizers without any token of chats
_PLAIN = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
BUILT_IN = {"chatml": _CHATML, "plain": _PLAIN}


@dataclass(frozen=True)
class Rendered:
    """`marked`: characters [begin, end) that the template says the model generates."""

    text: str
    marked: tuple[tuple[int, int], ...]


class ChatTemplate:
    """`specials`: texts by Hugging Face's names, which templates use: {"eos_token": "</s>"}."""

    def __init__(
        self, source: str, *, specials: Mapping[str, str], date: str | None = None, where: str
    ) -> None:
        """Raises: DataError if the template is not jinja."""
        self._where = where
        self._specials = dict(specials)
        environment = _environment(date, where=where)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as e:
            raise DataError(f"the chat template of {where} is not valid: {e}") from e
        self.marks_answers = "generation" in _tags(source)

    @classmethod
    def open(
        cls, folder: Path, *, name: str = "tokenizer", date: str | None = None
    ) -> ChatTemplate:
        """As `find`, and where there is none: DataError."""
        found = cls.find(folder, name=name, date=date)
        if found is None:
            known = ", ".join(BUILT_IN)
            raise DataError(
                f"{folder} has no chat template ({FILE}, or chat_template in its {CONFIG}); name "
                f"one with task.template: {known}, or the path of a jinja file"
            )
        return found

    @classmethod
    def find(
        cls, folder: Path, *, name: str = "tokenizer", date: str | None = None
    ) -> ChatTemplate | None:
        """`name`: "tokenizer", one of BUILT_IN, or a path of a jinja file. None: the tokenizer is
        to have one, and has none.

        Raises: DataError if a file that is named is not there, or it is not jinja.
        """
        config = _config(folder)
        specials = {n: t for n, v in config.items() if n.endswith("_token") and (t := _text(v))}
        if name in BUILT_IN:
            return cls(BUILT_IN[name], specials=specials, date=date, where=f"task.template={name}")
        path = folder / FILE if name == "tokenizer" else Path(name).expanduser()
        if path.is_file():
            source = path.read_text(encoding="utf-8")
            return cls(source, specials=specials, date=date, where=str(path))
        if name != "tokenizer":
            raise DataError(f"task.template={name}: there is no such file")
        found = _of_config(config.get("chat_template"))
        if found is None:
            return None
        return cls(found, specials=specials, date=date, where=str(folder))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        asks: bool = False,
    ) -> Rendered:
        """`asks`: with what makes the model answer at its end.

        Raises: DataError with what the template itself says, if it refuses these messages.
        """
        values = {
            **self._specials,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": asks,
        }
        try:
            return _without_marks(self._template.render(values))
        except DataError:
            raise
        except Exception as e:  # a template is a program: anything can happen
            said = " ".join(str(e).split())[:300]
            raise DataError(f"the chat template refuses it: {said}") from e


def _environment(date: str | None, *, where: str) -> jinja2.Environment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    if date is not None:
        day = _day(date)
        made.globals["strftime_now"] = day.strftime
    return made


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


def _without_marks(text: str) -> Rendered:
    made, marked, begin = "", [], 0
    for number, piece in enumerate(text.split(_BEGIN)):
        if number == 0:
            made = piece
            continue
        inside, _, after = piece.partition(_END)
        begin = len(made)
        made += inside
        marked.append((begin, len(made)))
        made += after
    return Rendered(made, tuple(marked))


def _tags(source: str) -> set[str]:
    words = source.replace("{%-", "{%").replace("{%+", "{%").split("{%")[1:]
    return {word.split()[0].rstrip("-%}") for word in words if word.split()}


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Jinja's own escapes < and >, which would become part of what is learnt."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> None:
    raise DataError(f"the chat template refuses it: {message}")


def _day(date: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as e:
        raise DataError(f"task.date={date} is no day; write it as 2026-01-31") from e


def _config(folder: Path) -> dict[str, Any]:
    path = (folder if folder.is_dir() else folder.parent) / CONFIG
    try:
        found = read_untrusted_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read: {e}") from e
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _of_config(value: Any) -> str | None:
    """One template, or several of which one is the default."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {v.get("name"): v.get("template") for v in value if isinstance(v, dict)}
        return _text(named.get("default"))
    return None

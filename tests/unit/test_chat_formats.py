"""Chats and pairs of answers, in the shapes people keep them, all made into messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.records import CHAT, PAIRS, read, refused, said, wrote

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [USER, BOT]}, "messages"),
        ({"messages": [USER, {**BOT, "content": [{"type": "text", "text": "hello"}]}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
         "sharegpt"),
        ({"instruction": "hi", "input": "", "output": "hello"}, "alpaca"),
        ({"question": "hi", "answer": "hello"}, "turns"),
    ],
)  # fmt: skip
def test_every_chat_becomes_messages(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    path = wrote(tmp_path / "a.jsonl", [row])
    assert read(path, CHAT)[0].fields == {"messages": [USER, BOT]}
    assert f"jsonl of {kind} chats" in said(path, CHAT)


def test_systems_histories_and_tools_are_kept(tmp_path: Path) -> None:
    alpaca = {"instruction": "do", "input": "this", "output": "done", "system": "be nice",
              "history": [["hi", "hello"]]}  # fmt: skip
    found = read(wrote(tmp_path / "a.jsonl", [alpaca]), CHAT)[0].fields["messages"]
    assert [m["content"] for m in found] == ["be nice", "hi", "hello", "do\nthis", "done"]
    call = {"name": "add", "arguments": '{"a": 1}'}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "add"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "it is 2"},
        ],
        "tools": json.dumps([{"name": "add"}]),
    }
    fields = read(wrote(tmp_path / "b.jsonl", [sharegpt]), CHAT)[0].fields
    assert fields["tools"] == [{"name": "add"}]
    made = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert fields["messages"][1] == {"role": "assistant", "tool_calls": [made], "content": ""}
    assert fields["messages"][2] == {"role": "tool", "content": "2"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "nobody answers in this chat"),
        ([], "its chat is empty"),
        ([USER, {"role": "assistant", "contentt": "x"}],
         "message 2 has an unknown key 'contentt'; is it 'content'?"),
        ([USER, {"role": "helper", "content": "x"}], "message 2 has the role 'helper'"),
        ([USER, {"role": "assistant", "content": ""}], "message 2: its content is empty"),
        ([USER, {"role": "assistant", "content": 3}], "its content is int, not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, BOT], "pictures and sounds"),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "a call of a tool has no name"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}],
         "the arguments of f is not JSON"),
        (["hi", BOT], "message 1 is str"),
    ],
)  # fmt: skip
def test_bad_chats_are_named(tmp_path: Path, messages: Any, message: str) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"messages": [USER, BOT]}, {"messages": messages}])
    assert message in refused(path, CHAT)
    assert f"{path} row 2" in refused(path, CHAT)


def test_a_row_that_is_no_chat_says_what_to_set(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"body": "x", "dialogue_turns": [USER, BOT]}])
    assert "columns.messages=NAME" in refused(path, CHAT)
    columns = {"messages": "dialogue_turns"}
    assert read(path, CHAT, columns=columns)[0].fields == {"messages": [USER, BOT]}


# --- preferences -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "no"}]},
        {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "no"}]},
        {"prompt": [USER], "chosen": "hello", "rejected": "no"},
        {"conversations": [{"from": "human", "value": "hi"}],
         "chosen": {"from": "gpt", "value": "hello"}, "rejected": {"from": "gpt", "value": "no"}},
    ],
)  # fmt: skip
def test_pairs_of_chats_share_their_prompt(tmp_path: Path, row: dict[str, Any]) -> None:
    fields = read(wrote(tmp_path / "a.jsonl", [row]), PAIRS)[0].fields
    assert fields["prompt"] == [USER]
    assert fields["chosen"] == [BOT]
    assert fields["rejected"] == [{"role": "assistant", "content": "no"}]


def test_pairs_of_texts(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant:"
    path = wrote(tmp_path / "a.jsonl", [{"chosen": start + " yes", "rejected": start + " no"}])
    expected = {"prompt": start, "chosen": " yes", "rejected": " no"}
    assert read(path, PAIRS)[0].fields == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": [BOT]}, "not both texts or both chats"),
        (
            {"chosen": [USER, BOT], "rejected": [{**USER, "content": "yo"}, BOT]},
            "do not begin with",
        ),
        ({"chosen": [USER, BOT], "rejected": [USER, USER]}, "'rejected' does not go on with"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = wrote(tmp_path / "a.jsonl", [row])
    assert message in refused(path, PAIRS)
    assert f"{path} row 1" in refused(path, PAIRS)

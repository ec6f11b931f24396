"""Conversations against transformers: the same ids and the same places that are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.chat_templates import CHATML, CHATML_MARKED, STRICT
from tests.helpers.tokenizer_folders import gpt_folder
from trainer.batch import IGNORED
from trainer.config.sections.encodings import ChatSettings
from trainer.data.encodings.chat import ChatEncoding
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import BUILT_IN, ChatTemplate
from trainer.records.record import Record

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "\u00fc<b>"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "  what is two plus two? Gr\u00fc\u00dfe \u6771\u4eac"},
    {"role": "assistant", "content": "four\nis the answer \U0001f682 "},
    {"role": "user", "content": "thank you"},
    {"role": "assistant", "content": "hello"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b"}}]


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, STRICT, *BUILT_IN.values()])
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["plain", "tools"])
def test_ids_and_learnt_tokens_are_those_of_transformers(
    template: str, tools: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = gpt_folder(tmp_path, chat_template=template)
    talk = TALK
    if tools and template in (CHATML, CHATML_MARKED):
        talk = [*TALK[:1], {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "4"}, *TALK[1:]]  # fmt: skip
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        talk, tools=list(tools) or None, return_dict=True, return_assistant_tokens_mask=True
    )
    settings = ChatSettings(template="tokenizer", roles=("assistant",), turns="all", date=None)
    encoding = ChatEncoding(
        settings,
        TaskTokenizer.open(folder),
        template=ChatTemplate.open(folder),
        row_tokens=512,
    )
    (found,) = encoding.encode(Record({"messages": talk, "tools": list(tools)}, "x", 1))
    ids = expected["input_ids"]
    assert found.arrays["inputs"].tolist() == ids[:-1]
    if "{% generation" in template:  # without marks they have no mask to compare with
        mask = expected["assistant_masks"]
        labels = [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
        assert found.arrays["labels"].tolist() == labels[1:]
        assert sum(mask) > 4

"""Whether a chat template and a tokenizer belong together: its marks have to be tokens."""

from __future__ import annotations

import re

from trainer.data.audit_kinds import finding
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import ChatTemplate
from trainer.errors import DataError
from trainer.records.audit import Finding

# <|im_start|> <start_of_turn> </s> [INST] and their like: what people write for a token
_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?[a-z]{1,12}(?:_[a-z]{1,12}){0,3}>|\[/?[A-Z_]{3,24}\]")
_TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello to you"},
]


def template_findings(template: ChatTemplate, tokenizer: TaskTokenizer) -> list[Finding]:
    """Of marks that the tokenizer would cut into pieces, like any word."""
    try:
        text = template.render(_TALK).text
    except DataError:  # it asks for more than two messages: the data will tell
        return []
    marks = dict.fromkeys(_MARK.findall(text))
    unknown = [m for m in marks if len(tokenizer.encode_rendered(m).ids) != 1]
    if not unknown:
        return []
    return [finding("template_mismatch", len(unknown), of=len(marks), places=tuple(unknown[:10]))]

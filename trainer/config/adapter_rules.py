"""What fits together where only a part of a model is trained."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.adapters import LoraAdapter, PromptAdapter
from trainer.errors import Problem


def adapter_problems(config: Config) -> Iterator[Problem]:
    adapter = config.model.adapter
    if isinstance(adapter, PromptAdapter):
        yield from _prompt_problems(adapter, config)
    if not isinstance(adapter, LoraAdapter):
        return
    if adapter.kind == "qlora":
        what = (
            "qlora computes with weights of 4 bits (bitsandbytes), which needs a CUDA device and "
            "was not run on GPUs yet, so that no run takes it"
        )
        yield Problem("model.adapter", what, "model/adapter=lora")
    width = config.model.hidden_size if config.model.kind != "folder" else None
    if width is not None and adapter.rank > width:
        what = f"rank {adapter.rank} is more than the {width} columns of the model's matrices"
        yield Problem("model.adapter.rank", what, f"model.adapter.rank={min(8, width)}")


def _prompt_problems(adapter: PromptAdapter, config: Config) -> Iterator[Problem]:
    if config.task.head != "next_token" or config.task.shares_rows:
        what = f"virtual tokens stand before a decoder's row, and {config.task.kind} has none"
        yield Problem("model.adapter", what, "model/adapter=lora")
    elif config.data.packing:
        what = (
            f"the {adapter.virtual_tokens} virtual tokens stand before a row, and of the documents "
            "packed in it only the first would begin with them"
        )
        yield Problem("data.packing", what, "data.packing=false")
    if adapter.kind == "prefix" and config.model.activation_checkpointing:
        what = "layers that are computed again forget the prefix's keys and values (transformers)"
        yield Problem(
            "model.activation_checkpointing", what, "model.activation_checkpointing=false"
        )

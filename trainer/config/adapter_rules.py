"""What fits together where only a part of a model is trained."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.adapters import LoraAdapter
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import Problem


def adapter_problems(config: Config) -> Iterator[Problem]:
    adapter, engine = config.model.adapter, config.engine
    if not isinstance(adapter, LoraAdapter):
        return
    if adapter.kind == "qlora":
        what = (
            "qlora computes with weights of 4 bits (bitsandbytes), which needs a CUDA device and "
            "was not run on GPUs yet, so that no run takes it"
        )
        yield Problem("model.adapter", what, "model/adapter=lora")
    if adapter.kind == "dora" and isinstance(engine, DeepSpeedEngine) and engine.stage == 3:
        what = (
            "dora measures frozen matrices while it computes (peft 0.21), and ZeRO-3 has shared "
            "them out"
        )
        yield Problem("model.adapter", what, "model/adapter=lora, or engine=zero2")
    width = config.model.hidden_size if config.model.kind != "folder" else None
    if width is not None and adapter.rank > width:
        what = f"rank {adapter.rank} is more than the {width} columns of the model's matrices"
        yield Problem("model.adapter.rank", what, f"model.adapter.rank={min(8, width)}")

"""What DeepSpeed is told, for every engine that conf/ offers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.configs import config as composed
from trainer.config.sections.training import DeepSpeedEngine
from trainer.engine.zero_config import zero_config
from trainer.errors import ConfigError


def told(*overrides: str, device: Any = "cuda") -> dict[str, Any]:
    made = composed(*overrides)
    assert isinstance(made.engine, DeepSpeedEngine)
    return zero_config(
        made.engine,
        made.precision,
        optimizer=made.optimizer,
        micro_batch_size=4,
        gradient_accumulation_steps=8,
        device=device,
    )


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("zero0", "fp32"),
        ("zero1", "autocast"),
        ("zero2", "bf16"),
        ("zero3", "fp16"),
        ("zero3_offload_cpu", "bf16"),
        ("zero3_offload_nvme", "bf16"),
    ],
)
def test_config_of(engine: str, precision: str, golden: Callable[[str, str], None]) -> None:
    more = ["engine.nvme_path=/local/scratch"] if engine.endswith("nvme") else []
    config = told(f"engine={engine}", f"precision={precision}", *more)
    golden(f"zero_config/{engine}-{precision}.json", json.dumps(config, indent=2) + "\n")


@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2", "zero3", "zero3_offload_cpu"])
def test_every_number_is_said_once_and_nothing_is_left_to_guess(engine: str) -> None:
    text = json.dumps(told(f"engine={engine}", "precision=fp32", device="cpu"))
    assert '"auto"' not in text
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert text.count(key) == 1
    assert "train_batch_size" not in text


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_summed_without_copies_on_cpus(stage: int) -> None:
    """Stage 3 reduces and scatters in one go, and cannot be told to sum."""
    host, gpu = (told(f"engine=zero{stage}", "precision=fp32", device=d) for d in ("cpu", "cuda"))
    assert host.get("gradient_allreduce_op") == (None if stage == 3 else "sum")
    assert host["zero_optimization"]["reduce_scatter"] is (stage == 3)
    assert gpu["zero_optimization"]["reduce_scatter"] is True


def test_what_cannot_work_is_refused_by_name() -> None:
    made = composed("engine=zero2", "precision=bf16")
    with pytest.raises(ConfigError) as caught:
        zero_config(
            made.engine.model_copy(update={"stage": 0, "offload_optimizer": "cpu"}),
            made.precision.model_copy(update={"kind": "fp16"}),
            optimizer=made.optimizer,
            micro_batch_size=4,
            gradient_accumulation_steps=8,
            device="cpu",
        )
    assert {p.where for p in caught.value.problems} == {
        "precision.kind",
        "engine.stage",
        "engine.offload_optimizer",
    }

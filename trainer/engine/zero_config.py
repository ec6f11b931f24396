"""Settings -> DeepSpeed's configuration. Pure; the golden tests show every result.

Each number is written in one place and nothing is "auto", so DeepSpeed has nothing to guess.
Versions: written against DeepSpeed 0.19.8.
"""

from __future__ import annotations

from typing import Any, Literal

from trainer.config.engine_rules import deepspeed_problems
from trainer.config.sections.training import DeepSpeedEngine, Optimizer, PrecisionSection
from trainer.errors import ConfigError


def zero_config(
    engine: DeepSpeedEngine,
    precision: PrecisionSection,
    *,
    optimizer: Optimizer,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    device: Literal["cpu", "cuda"],
) -> dict[str, Any]:
    """Raises: ConfigError with every combination that DeepSpeed cannot do, by name."""
    found = deepspeed_problems(engine, precision, optimizer=optimizer, device=device)
    if found:
        raise ConfigError(found)
    # Stage 0 is clipped by the engine, which needs the norm that DeepSpeed does not give there.
    clip = optimizer.max_grad_norm if engine.stage else 0.0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": clip,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would synchronise the device each step
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast on the host
        "zero_optimization": _zero(engine, device=device),
    }
    if engine.stage < 3:  # stage 3 can only average; engine/deepspeed.py undoes it there
        config["gradient_allreduce_op"] = "sum"
    # One micro-step adds nothing up: the same numbers, without a second copy of the gradients.
    wide = precision.accumulate_in == "fp32" and gradient_accumulation_steps > 1
    if precision.kind == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32" if wide else "bf16"}
    if precision.kind == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
        config["data_types"] = {"grad_accum_dtype": "fp32" if wide else "fp16"}
    # fp32 and autocast: no section. Autocast is ours (engine/model_setup.py says why).
    return config


def _zero(engine: DeepSpeedEngine, *, device: str) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": engine.stage,
        # A CPU has no second stream to overlap on: the bookkeeping alone cost 2 to 3% of a step.
        "overlap_comm": engine.overlap_communication and device == "cuda",
        # On CPUs DeepSpeed would copy each bucket, reduce the copy as a whole, and copy it back.
        "reduce_scatter": engine.reduce_scatter and (device == "cuda" or engine.stage == 3),
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_elements,
    }
    if engine.stage in (1, 2):
        zero["allgather_bucket_size"] = engine.bucket_elements + engine.bucket_elements % 2  # even
    if engine.stage == 3:
        zero["memory_efficient_linear"] = False  # engine/deepspeed.py brings its own
        zero["stage3_prefetch_bucket_size"] = engine.prefetch_elements
        zero["stage3_param_persistence_threshold"] = engine.persistence_threshold_elements
    for section, target in (
        ("offload_optimizer", engine.offload_optimizer),
        ("offload_param", engine.offload_parameters),
    ):
        if target != "none":
            zero[section] = {"device": target, "pin_memory": device == "cuda"}
        if target == "nvme":
            zero[section]["nvme_path"] = engine.nvme_path
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        # Each parameter by itself. Gradients of several in one group are read back to addresses
        # that are not aligned, which fails without a word; and buffers are as large as a group.
        zero["sub_group_size"] = 1
    if engine.offload_optimizer == "nvme":
        zero["offload_optimizer"]["buffer_count"] = 4  # master, gradient, and AdamW's two moments
    if engine.offload_parameters == "nvme":
        # By default the first 1e9 elements of a rank's share never leave the host's memory.
        zero["offload_param"]["max_in_cpu"] = 0
        # Fetched ahead, a parameter that comes twice (forward, backward) is read twice: it asserts.
        zero["stage3_prefetch_bucket_size"] = 0
    return zero

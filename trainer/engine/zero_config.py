"""Settings -> DeepSpeed's configuration. Pure; the golden tests show every result.

Each number is written in one place and nothing is "auto", so DeepSpeed has nothing to guess.
Versions: written against DeepSpeed 0.19.8.
"""

from __future__ import annotations

from typing import Any, Literal

from trainer.config.sections.training import DeepSpeedEngine, Optimizer, PrecisionSection
from trainer.errors import ConfigError, Problem


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
    found = problems(engine, precision, optimizer=optimizer, device=device)
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
    if precision.kind == "bf16":
        config["bf16"] = {"enabled": True}
        wide = precision.accumulate_in == "fp32"
        config["data_types"] = {"grad_accum_dtype": "fp32" if wide else "bf16"}
    if precision.kind == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
        wide = precision.accumulate_in == "fp32"
        config["data_types"] = {"grad_accum_dtype": "fp32" if wide else "fp16"}
    # fp32 and autocast: no section. Autocast is ours (engine/model_setup.py says why).
    return config


def _zero(engine: DeepSpeedEngine, *, device: str) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": engine.stage,
        "overlap_comm": engine.overlap_communication,
        "reduce_scatter": engine.reduce_scatter,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_elements,
    }
    if engine.stage in (1, 2):
        zero["allgather_bucket_size"] = engine.bucket_elements + engine.bucket_elements % 2  # even
    if engine.stage == 3:
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
    return zero


def problems(
    engine: DeepSpeedEngine,
    precision: PrecisionSection,
    *,
    optimizer: Optimizer,
    device: Literal["cpu", "cuda"],
) -> list[Problem]:
    """What DeepSpeed refuses, or does wrongly without a word."""
    return [
        *_precision_problems(engine, precision, device=device),
        *_offload_problems(engine),
        *_muon_problems(engine, optimizer),
    ]


def _precision_problems(
    engine: DeepSpeedEngine, precision: PrecisionSection, *, device: str
) -> list[Problem]:
    found = []
    if precision.kind == "fp16" and device == "cpu":
        what = "fp16 runs on GPUs only: DeepSpeed and torch have no fp16 arithmetic for CPUs"
        found.append(Problem("precision.kind", what, "precision=bf16"))
    if precision.kind in ("bf16", "fp16") and engine.stage == 0:
        # Losses were off by 6e-4 after 6 steps, three times as much as with stage 1.
        what = f"stage 0 with {precision.kind} weights loses accuracy; stage 1 keeps fp32 masters"
        found.append(Problem("engine.stage", what, "engine=zero1"))
    return found


def _offload_problems(engine: DeepSpeedEngine) -> list[Problem]:
    found = []
    if engine.offload_optimizer != "none" and engine.stage == 0:
        what = "offloading needs sharded optimizer states, which stage 0 has not"
        found.append(Problem("engine.offload_optimizer", what, "engine=zero2"))
    if engine.offload_optimizer == "nvme" and engine.stage in (1, 2):
        what = f"nvme needs stage 3; stage {engine.stage} can offload to cpu"
        found.append(Problem("engine.offload_optimizer", what, "engine=zero3_offload_nvme"))
    if engine.offload_parameters != "none" and engine.stage != 3:
        what = f"parameters are whole at stage {engine.stage}: only stage 3 can offload them"
        found.append(Problem("engine.offload_parameters", what, "engine=zero3_offload_cpu"))
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters) and not engine.nvme_path:
        what = "offloading to nvme needs a folder on a local disk"
        found.append(Problem("engine.nvme_path", what, "engine.nvme_path=/local/scratch"))
    return found


def _muon_problems(engine: DeepSpeedEngine, optimizer: Optimizer) -> list[Problem]:
    found = []
    if optimizer.kind == "muon" and engine.stage == 3 and engine.reduce_scatter:
        what = "Muon needs whole gradients, which stage 3 with reduce_scatter never has"
        found.append(Problem("engine.reduce_scatter", what, "engine.reduce_scatter=false"))
    if optimizer.kind == "muon" and engine.offload_optimizer == "nvme":
        what = "Muon does not run with its state on nvme"
        found.append(Problem("engine.offload_optimizer", what, "engine.offload_optimizer=cpu"))
    return found

"""Peak speed of GPUs, for MFU: dense bf16 tensor-core figures, without sparsity."""

from __future__ import annotations

# Substring of the device's name -> TFLOP/s; the first that fits, so longer names come first.
# Source: NVIDIA's data sheets of each product; where one gives the figure with sparsity, half.
DENSE_BF16_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("B100", 1750.0),
    ("GH200", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.0),
    ("H100", 989.4),
    ("H800 PCIe", 756.0),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100", 125.0),
    ("T4", 65.0),
)


def peak_tflops(device_name: str) -> float | None:
    """Dense 16-bit peak of a GPU by the name torch gives it; None if the table has it not.

    V100 and T4 have no bf16: the figure is that of fp16.
    """
    for part, tflops in DENSE_BF16_TFLOPS:
        if part in device_name:
            return tflops
    return None

"""Imported once by the server that every rank of a test is forked from.

Everything slow and shared belongs here; nothing that starts a thread, opens a device or draws a
random number does, because all ranks inherit it.
"""

from __future__ import annotations

import os

# Ranks of tests are CPU ranks, also on a machine with GPUs, where a look for a device while this
# server starts would leave every forked rank with a broken CUDA.
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Importing torch._inductor must not start its compile workers here.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import deepspeed

# The first ZeRO optimizer imports Muon, Muon imports torch._inductor: 1.1 s that every rank would
# pay again (DeepSpeed 0.19.8, torch 2.13).
import deepspeed.runtime.zero.muon.muon_optimizer
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2
import pytest  # noqa: F401  (every test module imports it)
import torch.distributed
from transformers.models.llama import modeling_llama  # noqa: F401

# DeepSpeed compiles this C++ op in init_distributed, under a lock that a killed rank leaves behind
# for ever; without it gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.set_num_threads(1)

"""The device and the precision that models compute in."""

import functools

import torch
from transformers import (
    TrainingArguments,
)


def pick_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def multiplies_bf16(device: str) -> bool:
    """Whether a type of device multiplies in bfloat16: GPUs since Ampere, CPUs with AMX or AVX512_BF16.

    Measured on two cores, a pre-training step of 4 x 512 tokens in bfloat16 and in float32: with AMX 187 and 390 ms,
    with AVX512_BF16 (AMD) 530 and 800 ms. A CPU without either computes in bfloat16 up to 16 times slower.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return device == "cpu" and any(units.get(name) for name in ("amx_bf16", "avx512_bf16"))


def choose_precision(training: TrainingArguments) -> None:
    """Sets `bf16` where the user has left it open, and `use_cpu` where there is nothing else, as bf16 asks for."""
    training.use_cpu = training.use_cpu or not torch.accelerator.is_available()
    if training.bf16 is None:
        training.bf16 = not training.fp16 and multiplies_bf16("cpu" if training.use_cpu else pick_device())

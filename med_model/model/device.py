"""Choose the device for the computations of a model, and their precision: bfloat16 or float32."""

import functools

import torch
from transformers import TrainingArguments


def pick_device() -> str:
    """Return the first of "cuda", "mps" and "cpu" that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def multiplies_bf16(device: str) -> bool:
    """Return True if a device type ("cuda", "mps" or "cpu") has hardware to multiply numbers in bfloat16.

    NVIDIA GPUs of the Ampere generation and later ones have it. CPUs with AMX or AVX512_BF16 have it. For other CPUs
    and for "mps" the result is False. A CPU without such hardware is up to 16 times slower in bfloat16 than in
    float32. A CPU with such hardware is faster in bfloat16. We measured a pre-training step of 4 x 512 tokens on two
    cores. With AMX the step took 187 ms in bfloat16 and 390 ms in float32. With AVX512_BF16 (AMD) the step took 530 ms
    in bfloat16 and 800 ms in float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return device == "cpu" and any(units.get(name) for name in ("amx_bf16", "avx512_bf16"))


def choose_precision(training: TrainingArguments) -> None:
    """Set `use_cpu` to True on a machine without a GPU, and set `bf16` if it is None.

    Without `use_cpu` the Trainer refuses `bf16` on a CPU. `bf16` is None if the user did not set it. It becomes True
    if the device has hardware for bfloat16 and `fp16` is not set.
    """
    training.use_cpu = training.use_cpu or not torch.accelerator.is_available()
    if training.bf16 is None:
        training.bf16 = not training.fp16 and multiplies_bf16("cpu" if training.use_cpu else pick_device())

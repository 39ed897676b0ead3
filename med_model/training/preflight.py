"""Print device, versions, memory, disk space and size of a training before it starts."""

import importlib.metadata
import math
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl import DPOConfig, SFTConfig

from med_model import paths
from med_model.errors import UserError
from med_model.language import tr
from med_model.model.directory import LIBRARIES
from med_model.model.head import CHUNK_TOKENS, DEFAULT_CHUNK_TOKENS, KEPT_PROBABILITY_BYTES
from med_model.screen import say
from med_model.training.muon import MuonWithAdamW
from med_model.training.progress import Workload, count_steps

FIRST_STEP_BYTES = 50_000_000  # memory that the first step takes even for a tiny batch: measured with 16 tokens


def check_versions() -> list[str]:
    """Return one line per package of requirements.txt that is missing or has a version out of range."""
    lines = []
    for line in (paths.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):  # an option of pip: "-e ." installs the project itself
            continue
        wanted = Requirement(line)
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(
                tr("{package} is not installed, {wanted} is needed", package=wanted.name, wanted=wanted.specifier)
            )
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            lines.append(
                tr(
                    "{package} is {found}, {wanted} is needed",
                    package=wanted.name,
                    found=found,
                    wanted=wanted.specifier,
                )
            )
    return lines


def _optimizer_bytes(trainer: Trainer) -> int:
    """Return the bytes of the optimizer's states: 8 per parameter for AdamW's two moments, 4 for Muon's momentum."""
    if not isinstance(trainer.optimizer, MuonWithAdamW):  # it is None until the training starts: counted as AdamW
        return 8 * trainer.model.num_parameters()
    groups = trainer.optimizer.param_groups
    return sum((4 if group["muon"] else 8) * parameter.numel() for group in groups for parameter in group["params"])


def _checkpoints_at_once(training: TrainingArguments) -> int:
    """Return the largest number of checkpoints on disk at one time, including the one being written."""
    if training.save_strategy == "no":
        return 0
    # Without a limit all checkpoints stay. If save_steps is below 1, it is a share of all steps, and 1 / save_steps
    # checkpoints are written. Otherwise the result is 1, which may be too low.
    if not training.save_total_limit:
        return math.ceil(max(1, 1 / training.save_steps))
    # With load_best_model_at_end the best and the last checkpoint stay, even if the limit is 1.
    return max(training.save_total_limit, 1 + training.load_best_model_at_end) + 1


def disk_needs(trainer: Trainer, output_model: str | Path) -> list[tuple[Path, int, int]]:
    """Return (folder, bytes needed, bytes free) for each file system that the training writes to.

    Old checkpoints count as free space: --overwrite removes them, and a resumed run replaces them.
    """
    weights = 4 * trainer.model.num_parameters()
    checkpoint = weights + _optimizer_bytes(trainer)
    needs = (
        (trainer.args.output_dir, _checkpoints_at_once(trainer.args) * checkpoint),
        (output_model, weights),
    )
    systems: dict[int, list] = {}
    for target, need in needs:
        path = Path(target).resolve()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        system = systems.setdefault(existing.stat().st_dev, [path, 0, shutil.disk_usage(existing).free])
        system[1] += need
        system[2] += sum(file.stat().st_size for file in path.glob("checkpoint-*/*"))
    return list(map(tuple, systems.values()))


def check_disk(trainer: Trainer, output_model: str | Path) -> None:
    """Raise UserError if a file system has too little space for the checkpoints and the trained model."""
    fewer = "--save_total_limit 1" + (" --load_best_model_at_end False" if trainer.args.load_best_model_at_end else "")
    for folder, need, free in disk_needs(trainer, output_model):
        if free < need:
            raise UserError(
                tr(
                    "There is not enough disk space for {folder}/: {need} are needed, {free} are free. "
                    "--output_dir DIR and --output_model DIR write elsewhere; {fewer} keeps fewer checkpoints.",
                    folder=paths.shown(folder),
                    need=_gb(need),
                    free=_gb(free),
                    fewer=fewer,
                )
            )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _held_bytes(device: torch.device) -> int:
    """Return the bytes of memory in use: those of PyTorch's tensors on a CUDA GPU, else the RAM of the process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def _kept_for_backward(model: PreTrainedModel, training: TrainingArguments, rows: int, workload: Workload) -> int:
    """Return the bytes that one batch keeps for the backward pass, without the logits and their probabilities.

    The batch has `rows` rows of the longest length, and the plain text of the KL regularization (retention).
    d is n_embd, i is n_inner. m is the size in bytes of a number in matrix products: 2 under autocast, else 4.
    Each layer keeps these bytes per token:
    - 8 d for the inputs of its two norms, in float32;
    - 6 m d for the outputs of the two norms, for q, k and v, and for the output of the attention;
    - 2 m i for the input and the output of the nonlinearity;
    - with dropout, 2 m d for the two dropout masks.

    With dropout in the attention, a CPU keeps three float32 matrices (length, length) per row, layer and attention
    head: the probabilities, the mask, and their product. The layer being computed needs three more per row and head.
    """
    config, d, m = model.config, model.config.n_embd, 2 if training.bf16 or training.fp16 else 4
    # Read the dropout from the modules: TRL's --disable_dropout changes the modules, but not the configuration.
    active = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p]
    in_attention = [name for name in active if name.endswith("attn_dropout")]
    dropout, attention_dropout = len(active) > len(in_attention), bool(in_attention)
    per_layer = 8 * d + m * (6 * d + 2 * (config.n_inner or 4 * d)) + (2 * m * d if dropout else 0)
    # 20 d is the size in bytes of five float32 vectors per token: the embedding, the input and the output of the last
    # norm, the input of the output layer, and the gradient of this input.
    kept = (rows * workload.longest + workload.retention_tokens) * (config.n_layer * per_layer + 20 * d)
    if attention_dropout and training.device.type == "cpu":
        squares = rows * workload.longest**2 + workload.retention_tokens**2
        kept += 12 * (config.n_layer + 1) * config.n_head * squares
    return kept


def memory_estimate(trainer: Trainer, workload: Workload) -> int:
    """Return the estimated peak memory in bytes of the training of a GPT-2, with a batch of the longest rows.

    The estimate is the sum of the memory that the process already uses, FIRST_STEP_BYTES, and the memory for:
    - the gradients and the optimizer states;
    - a second gradient of the embedding: the tied output layer has its own gradient until both are added;
    - under autocast, copies of the weights in 16 bits;
    - the activations that the layers keep for the backward pass;
    - the logits and the probabilities of one chunk of tokens, and the tensors of the KL regularization;
    - with TRL's losses, the probabilities of all tokens with a label, at most KEPT_PROBABILITY_BYTES.

    The estimate assumes that every token has a label. docs/en/health.md compares it with measured peaks on CPUs.
    """
    model, training = trainer.model, trainer.args
    vocabulary, mixed = model.config.vocab_size, training.bf16 or training.fp16
    by_trl = isinstance(training, SFTConfig | DPOConfig)
    rows = training.train_batch_size * (2 if isinstance(training, DPOConfig) else 1)
    tokens = rows * workload.longest
    table, weights = 4 * vocabulary * model.config.n_embd, 4 * model.num_parameters()

    standing = weights + _optimizer_bytes(trainer) + table + (weights // 2 if mixed else 0)
    chunk = CHUNK_TOKENS.get(training.device.type, DEFAULT_CHUNK_TOKENS)
    head = min(tokens, chunk) * vocabulary * ((2 if mixed else 4) + (8 if by_trl else 4))
    if by_trl:
        head += min(4 * tokens * vocabulary, KEPT_PROBABILITY_BYTES)
    # The KL regularization needs five float32 tensors (chunk, vocab). It also needs about three tensors of the size of
    # the embedding: for its gradient, for the gradient from one chunk, and under autocast for 16-bit copies of two
    # embeddings (the model's and the earlier model's).
    if workload.retention_tokens:
        head += min(workload.retention_tokens, chunk) * vocabulary * 20 + 3 * table
    kept = _kept_for_backward(model, training, rows, workload)
    return _held_bytes(training.device) + FIRST_STEP_BYTES + standing + kept + head


def smaller_batch(training: TrainingArguments) -> str:
    """Return advice for too little memory: to halve the batch and double the gradient accumulation.

    If a batch has only one row, the advice is to use shorter rows or a smaller model.
    """
    smaller, accumulation = training.per_device_train_batch_size // 2, training.gradient_accumulation_steps
    if not smaller:
        return tr("A batch is one row already: use shorter rows or a smaller model.")
    options = f"--per_device_train_batch_size {smaller} --gradient_accumulation_steps {2 * accumulation}"
    return tr("{options} trains alike with less memory.", options=options)


def _say_memory(trainer: Trainer, workload: Workload) -> None:
    device = trainer.args.device
    # The number of processes that share the same memory. A GPU is used by one process only.
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    held, estimate = _held_bytes(device), memory_estimate(trainer, workload)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - held
    else:
        free = psutil.virtual_memory().available
    peak, available = _gb(estimate * processes), _gb(free + held * processes)
    say(tr("Memory: about {peak} at the peak, {available} available.", peak=peak, available=available))
    if (estimate - held) * processes > free:
        say("  " + tr("Warning: there may be too little memory. {advice}", advice=smaller_batch(trainer.args)))


def preflight(trainer: Trainer, output_model: str | Path, workload: Workload) -> None:
    """Print device, versions, memory, disk space and size of the training. Raise UserError if the disk is too full."""
    training = trainer.args
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32"
    say(
        tr(
            "Device: {device}, precision {precision}, {threads} CPU threads, {processes} process(es).",
            device=training.device.type,
            precision=precision,
            threads=torch.get_num_threads(),
            processes=training.world_size,
        )
    )
    versions = ", ".join(f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES)
    say(tr("Versions: Python {python}, {versions}.", python=platform.python_version(), versions=versions))
    for line in check_versions():
        say("  " + tr("Warning: {line}. Run pip install -r requirements.txt", line=line))
    _say_memory(trainer, workload)
    check_disk(trainer, output_model)
    for folder, need, free in disk_needs(trainer, output_model):
        say(
            tr(
                "Disk: {need} needed for {folder}, {free} free.",
                need=_gb(need),
                folder=paths.shown(folder),
                free=_gb(free),
            )
        )
    epoch, steps = count_steps(trainer)
    say(
        tr(
            "Training: {tokens:,} tokens per epoch, {epochs:.3g} epochs, batch {batch}, {steps:,} steps.",
            tokens=workload.tokens,
            epochs=steps / epoch,
            batch=training.train_batch_size * training.world_size * training.gradient_accumulation_steps,
            steps=steps,
        )
    )

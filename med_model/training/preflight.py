"""The lines that a learner should see before a stage trains: device, versions, memory, disk, size of the training."""

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

FIRST_STEP_BYTES = 50_000_000  # loaded by the first step of any size: measured with one row of 16 tokens


def check_versions() -> list[str]:
    """A line for each package of requirements.txt that is missing or outside of its version range."""
    lines = []
    for line in (paths.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):  # "-e .", the project itself
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
    """8 bytes per parameter for the two moments of AdamW, 4 for Muon's momentum."""
    if not isinstance(trainer.optimizer, MuonWithAdamW):  # None: the Trainer makes its AdamW later
        return 8 * trainer.model.num_parameters()
    groups = trainer.optimizer.param_groups
    return sum((4 if group["muon"] else 8) * parameter.numel() for group in groups for parameter in group["params"])


def _checkpoints_at_once(training: TrainingArguments) -> int:
    """The most checkpoints that stand on disk at one time, the one being written among them."""
    if training.save_strategy == "no":
        return 0
    if not training.save_total_limit:  # all stay; save_steps of 1 and more is a number of steps: at least one
        return math.ceil(max(1, 1 / training.save_steps))
    # The best and the last stay in any case.
    return max(training.save_total_limit, 1 + training.load_best_model_at_end) + 1


def disk_needs(trainer: Trainer, output_model: str | Path) -> list[tuple[Path, int, int]]:
    """(folder, bytes needed, bytes free) per file system that the stage writes to.

    The space of old checkpoints counts as free: --overwrite removes them, and --resume keeps their number.
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
    """Raise UserError if a file system has too little room for the checkpoints and the model of a stage."""
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
    """Bytes that the process holds already, its weights among them: of the GPU's memory on a GPU, else of RAM."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def _kept_for_backward(model: PreTrainedModel, training: TrainingArguments, rows: int, workload: Workload) -> int:
    """Bytes that the layers keep for the backward pass, for `rows` rows of the longest length.

    With d = n_embd, i = n_inner and m bytes per number in the products (2 under autocast, else 4), a layer keeps per
    token: 8 d for the inputs of its two norms in float32; m (6 d + 2 i) for the outputs of the norms, q, k, v, the
    output of attention, and input and output of the nonlinearity; with dropout also 2 m d for its two masks.

    A CPU does not fuse attention with dropout. It keeps three float32 matrices of (length, length) per head and layer
    (probabilities, mask, their product), and three more while a layer's are made.
    """
    config, d, m = model.config, model.config.n_embd, 2 if training.bf16 or training.fp16 else 4
    # From the modules: TRL's --disable_dropout sets their dropout to 0, not that of the configuration.
    active = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p]
    in_attention = [name for name in active if name.endswith("attn_dropout")]
    dropout, attention_dropout = len(active) > len(in_attention), bool(in_attention)
    per_layer = 8 * d + m * (6 * d + 2 * (config.n_inner or 4 * d)) + (2 * m * d if dropout else 0)
    # 20 d: embeddings, input and output of the last norm, the rows at the head and their gradient.
    kept = (rows * workload.longest + workload.retention_tokens) * (config.n_layer * per_layer + 20 * d)
    if attention_dropout and training.device.type == "cpu":
        squares = rows * workload.longest**2 + workload.retention_tokens**2
        kept += 12 * (config.n_layer + 1) * config.n_head * squares
    return kept


def memory_estimate(trainer: Trainer, workload: Workload) -> int:
    """Bytes at the peak of training a GPT-2 with the chunked head on the longest rows of the workload.

    The process holds the weights already. The training adds gradients, optimizer states, the embedding's gradient
    before it joins that of the tied head, the activations kept for the backward pass, and the head: a chunk of logits
    and probabilities; TRL's losses keep the probabilities of all labelled tokens, up to a limit. Here every token
    counts as labelled. A GPU was not measured; docs/en/health.md has measured peaks beside this estimate.
    """
    model, training = trainer.model, trainer.args
    vocabulary, mixed = model.config.vocab_size, training.bf16 or training.fp16
    by_trl = isinstance(training, SFTConfig | DPOConfig)
    rows = training.train_batch_size * (2 if isinstance(training, DPOConfig) else 1)
    tokens = rows * workload.longest
    table, weights = 4 * vocabulary * model.config.n_embd, 4 * model.num_parameters()

    standing = weights + _optimizer_bytes(trainer) + table + (weights // 2 if mixed else 0)  # half: bfloat16 copies
    chunk = CHUNK_TOKENS.get(training.device.type, DEFAULT_CHUNK_TOKENS)
    head = min(tokens, chunk) * vocabulary * ((2 if mixed else 4) + (8 if by_trl else 4))
    if by_trl:
        head += min(4 * tokens * vocabulary, KEPT_PROBABILITY_BYTES)
    if workload.retention_tokens:  # five such chunks of two models, both tables, and one more gradient
        head += min(workload.retention_tokens, chunk) * vocabulary * 20 + 3 * table
    kept = _kept_for_backward(model, training, rows, workload)
    return _held_bytes(training.device) + FIRST_STEP_BYTES + standing + kept + head


def smaller_batch(training: TrainingArguments) -> str:
    """The advice for too little memory: half of the batch with twice the accumulation."""
    smaller, accumulation = training.per_device_train_batch_size // 2, training.gradient_accumulation_steps
    if not smaller:
        return tr("A batch is one row already: use shorter rows or a smaller model.")
    options = f"--per_device_train_batch_size {smaller} --gradient_accumulation_steps {2 * accumulation}"
    return tr("{options} trains alike with less memory.", options=options)


def _say_memory(trainer: Trainer, workload: Workload) -> None:
    device = trainer.args.device
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share the memory
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
    """Print device, versions, memory, disk and the size of the training. Raise UserError as check_disk does."""
    training = trainer.args
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32"
    say(
        tr(
            "Device: {device}, precision {precision}, {threads} CPU threads, {processes} process(es).",
            device=training.device,
            precision=precision,
            threads=torch.get_num_threads(),
            processes=training.world_size,
        )
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
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

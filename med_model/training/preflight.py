"""What a learner should know before a stage trains, printed in a few seconds, and a stop where it cannot work."""

import contextlib
import copy
import importlib.metadata
import json
import math
import os
import platform
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from packaging.requirements import Requirement
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl
from trl import DPOConfig, SFTConfig

from med_model import paths
from med_model.errors import UserError
from med_model.model.directory import LIBRARIES
from med_model.model.head import CHUNK_TOKENS, DEFAULT_CHUNK_TOKENS, KEPT_PROBABILITY_BYTES, use_chunked_head
from med_model.training.muon import optimizers_for

FIRST_STEP_BYTES = 50_000_000  # what the first step loads, whatever its size: measured with one row of 16 tokens
EVALUATION_SHARE = 1 / 3  # of a training token's time: the forward pass without the backward one


def check_versions() -> list[str]:
    """A line for each package of requirements.txt that is missing or outside the range that stands there."""
    lines = []
    for line in (paths.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):  # "-e .", the project itself
            continue
        wanted = Requirement(line)
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{wanted.name} 没有安装/is not installed, 要/wanted {wanted.specifier}")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            lines.append(f"{wanted.name} {found}, 要/wanted {wanted.specifier}")
    return lines


def _optimizer_bytes(model: PreTrainedModel, training: TrainingArguments) -> int:
    """8 bytes a parameter for AdamW's two moments, 4 for Muon's momentum."""
    if not getattr(training, "muon", False):  # DPO has no such option
        return 8 * model.num_parameters()
    groups = optimizers_for(model, training)[0].param_groups
    return sum((4 if group["muon"] else 8) * parameter.numel() for group in groups for parameter in group["params"])


def _disk(
    training: TrainingArguments, model: PreTrainedModel, output_model: str | Path
) -> list[tuple[Path, int, int]]:
    """(folder, bytes needed, bytes free) for each file system that the stage writes to.

    The space of old checkpoints counts as free: --overwrite removes them, --resume goes on among them.
    """
    weights, checkpoints = 4 * model.num_parameters(), 0
    if training.save_strategy != "no":
        checkpoints = max(1, 1 / training.save_steps)  # without a limit; where it is a number of steps, at least one
        if (
            training.save_total_limit
        ):  # those that are kept, the best and the last in any case, and the one being written
            checkpoints = max(training.save_total_limit, 1 + training.load_best_model_at_end) + 1
    needs = (
        (training.output_dir, math.ceil(checkpoints) * (weights + _optimizer_bytes(model, training))),
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


def check_disk(training: TrainingArguments, model: PreTrainedModel, output_model: str | Path) -> None:
    """UserError where a file system that the stage writes to has too little room for its checkpoints and model."""
    fewer = "--save_total_limit 1" + (" --load_best_model_at_end False" if training.load_best_model_at_end else "")
    for folder, need, free in _disk(training, model, output_model):
        if free < need:
            raise UserError(
                f"硬盘空间不够/not enough disk space for {paths.shown(folder)}/: 需要/need {_gb(need)}, 空闲/free "
                f"{_gb(free)}: --output_dir DIR and --output_model DIR write elsewhere, {fewer} keeps "
                "fewer checkpoints"
            )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _held_bytes(device: torch.device) -> int:
    """What the process holds already, the weights among it: of the GPU's memory on a GPU, else of the machine's."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def memory_estimate(model: PreTrainedModel, training: TrainingArguments, longest: int, beside: int = 0) -> int:
    """Bytes at the peak of training a GPT-2 with the chunked head on batches of `longest` tokens a row.

    `beside`: tokens of the plain text beside each batch, for retention.

    To what the process holds already come gradients, optimizer states, the weights once more (time_steps trains a
    copy), the embedding's gradient before it joins the tied head's, and what is kept for the backward pass. With d =
    n_embd, i = n_inner and m bytes a number in the products (2 under autocast, else 4), a layer keeps for a token:

        8 d             the inputs of its two norms, in float32
        m (6 d + 2 i)   outputs of the norms, q, k, v, the attention's output; input and output of the nonlinearity
        2 m d           the masks of its two dropouts, where there is dropout

    A CPU's attention with dropout is not fused: it keeps three float32 matrices of (length x length) a head and layer
    (probabilities, mask, their product), and three more while a layer's are made. The head holds a chunk of logits and
    probabilities; under TRL's losses it keeps the probabilities of all labelled tokens, up to a limit. Here all tokens
    count as labelled.

    Measured peak / estimate on the 8.41M model, one core, fp32 and bf16, with and without time_steps before it:
    pre-training 4 x 512 0.94 to 1.00; SFT 16 x 128 0.97 to 1.03, with a block of 512 beside it 0.95 to 1.09 (16 x 384:
    to 1.12); DPO 8 pairs x 2 x 200 0.95 to 1.05, but 0.83 after the reference's pass, whose freed memory the process
    still holds. A GPU was not measured.
    """
    config, device = model.config, training.device
    preference, by_trl = isinstance(training, DPOConfig), isinstance(training, SFTConfig | DPOConfig)
    mixed = training.bf16 or training.fp16
    # TRL's --disable_dropout sets the modules' dropout to 0, not the configuration's.
    dropout = any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    rows = training.train_batch_size * (2 if preference else 1)
    tokens, d, m = rows * longest, config.n_embd, 2 if mixed else 4
    table, weights = 4 * config.vocab_size * d, 4 * model.num_parameters()

    standing = 2 * weights + _optimizer_bytes(model, training) + table + (weights // 2 if mixed else 0)  # its casts
    a_layer = 8 * d + m * (6 * d + 2 * (config.n_inner or 4 * d)) + (2 * m * d if dropout else 0)
    # and embeddings, input and output of the last norm, the rows at the head and their gradient
    kept = (tokens + beside) * (config.n_layer * a_layer + 20 * d)
    if dropout and device.type == "cpu":
        kept += 12 * (config.n_layer + 1) * config.n_head * (rows * longest**2 + beside**2)

    chunk = CHUNK_TOKENS.get(device.type, DEFAULT_CHUNK_TOKENS)
    head_bytes = min(tokens, chunk) * config.vocab_size * (m + (8 if by_trl else 4))
    if by_trl:
        head_bytes += min(4 * tokens * config.vocab_size, KEPT_PROBABILITY_BYTES)
    if beside:  # five such chunks of two models, both their tables, and one more gradient
        head_bytes += min(beside, chunk) * config.vocab_size * 20 + 3 * table
    return _held_bytes(device) + FIRST_STEP_BYTES + standing + kept + head_bytes


class _Clock(DefaultFlowCallback):
    """In the place of the one that asks for logging, evaluation and saving: only marks the end of each step."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.marks: list[tuple[float, int]] = []  # (seconds, input tokens so far)

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append((time.perf_counter(), state.num_input_tokens_seen))
        control.should_training_stop = state.global_step >= state.max_steps

    def on_epoch_end(self, args, state, control, **kwargs):
        pass


@contextlib.contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Leaves the random generators of torch, the device, numpy and Python as they were before the block."""
    on_device = None if device.type == "cpu" else torch.get_device_module(device)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    device_state = on_device and on_device.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_device:
            on_device.set_rng_state(device_state)


def time_steps(trainer: Trainer, steps: int = 3) -> float:
    """Seconds that training takes for an input token, padding too, all processes together; leaves no trace.

    A shallow copy of the trainer trains a deep copy of model and optimizer, so that the trainer's own are never
    touched, and with only the clock for a callback it neither logs nor evaluates nor saves. One step more comes first
    and does not count: it warms up, and grouped by length it is the longest batch. UserError where a GPU's memory is
    too small. To be called in every process, as they train together.
    """
    rehearsal = copy.copy(trainer)
    model, rehearsal.optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
    use_chunked_head(model)  # its forward is a closure, which still meant the original
    rehearsal.model = rehearsal.model_wrapped = model
    rehearsal.args = copy.copy(trainer.args)
    rehearsal.args.max_steps = 1 + steps
    rehearsal.args.eval_on_start = False
    rehearsal.args.include_num_input_tokens_seen = "all"
    clock = _Clock()
    rehearsal.callback_handler = CallbackHandler([clock], model, trainer.processing_class, rehearsal.optimizer, None)
    rehearsal.control = TrainerControl()
    try:
        with _random_numbers_kept(trainer.args.device):
            rehearsal.train()
    except torch.OutOfMemoryError as error:
        raise UserError(f"显存不够/the GPU's memory is too small: {_smaller_batch(trainer.args)}") from error
    del rehearsal, model
    trainer.accelerator.free_memory()  # it holds the copies too; the training begins with this anyway
    (begin, before), (end, after) = clock.marks[0], clock.marks[-1]
    return (end - begin) / (after - before)


def _smaller_batch(training: TrainingArguments) -> str:
    smaller, accumulation = training.per_device_train_batch_size // 2, training.gradient_accumulation_steps
    if not smaller:
        return "每批只有一行/a batch is one row already: shorter rows or a smaller model"
    return f"--per_device_train_batch_size {smaller} --gradient_accumulation_steps {2 * accumulation} trains alike"


def _count_steps(trainer: Trainer) -> tuple[int, int]:
    """(steps of an epoch, of the whole training), as the Trainer counts them."""
    training = trainer.args
    batches = len(trainer.train_dataset) / (training.train_batch_size * training.world_size)
    batches = math.floor(batches) if training.dataloader_drop_last else math.ceil(batches)
    epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return epoch, training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * epoch)


def _count_evaluations(training: TrainingArguments, epoch: int, steps: int) -> int:
    if training.eval_strategy == "no":
        return 0
    if training.eval_strategy == "epoch":
        return math.ceil(steps / epoch)
    every = training.eval_steps if training.eval_steps >= 1 else math.ceil(training.eval_steps * steps)
    return math.ceil(steps / every)  # one at the end in any case


def preflight(
    trainer: Trainer,
    *,
    output_model: str | Path,
    tokens: int,
    longest: int,
    heldout_tokens: int = 0,
    beside: int = 0,
    checkpoint: str | None = None,
) -> None:
    """Prints device, versions, memory, disk, the size of the training and the time left; UserError as check_disk says.

    `tokens`: input tokens of an epoch; `longest`: of the longest row; `heldout_tokens`: of an evaluation; `beside`: as
    for memory_estimate; `checkpoint`: the one resumed from. To be called in every process; the first one prints.
    """
    model, training = trainer.model, trainer.args
    say = print if trainer.is_world_process_zero() else lambda line: None
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32"
    processes = f", 进程/processes {training.world_size}" if training.world_size > 1 else ""
    threads = torch.get_num_threads()
    say(f"设备/device {training.device}, 精度/precision {precision}, CPU 线程/threads {threads}{processes}")

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    say(f"版本/versions: Python {platform.python_version()}, {versions}")
    for line in check_versions():
        say(f"  注意/warning: {line}: pip install -r requirements.txt")

    on_gpu = training.device.type == "cuda"
    here = 1 if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share the memory
    held, estimate = _held_bytes(training.device), memory_estimate(model, training, longest, beside)
    if on_gpu:
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - held
    else:
        free = psutil.virtual_memory().available
    say(f"内存/memory: 峰值约/peak about {_gb(estimate * here)}, 可用/free {_gb(free + held * here)}")
    if (estimate - held) * here > free:
        say(f"  注意/warning: 内存可能不够/there may be too little memory: {_smaller_batch(training)}")

    check_disk(training, model, output_model)
    for folder, need, available in _disk(training, model, output_model):
        say(f"硬盘/disk: {paths.shown(folder)}: 需要/need {_gb(need)}, 空闲/free {_gb(available)}")

    epoch, steps = _count_steps(trainer)
    batch = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    say(
        f"训练/training: 每遍/an epoch {tokens:,} 词元/tokens, {steps / epoch:.3g} 遍/epochs, "
        f"每批/batch {batch}, {steps:,} 步/steps"
    )
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text("utf-8")) if checkpoint else {}
    left = 1 - state.get("global_step", 0) / steps
    second = time_steps(trainer)
    train_seconds = second * tokens * steps / epoch * left
    evaluations = _count_evaluations(training, epoch, steps)
    eval_seconds = second * EVALUATION_SHARE * heldout_tokens * evaluations * left
    say(
        f"时间/time left: 约/about {(train_seconds + eval_seconds) / 60:.1f} min, 其中验证/of it evaluation "
        f"{eval_seconds / 60:.1f} min ({1 / second:,.0f} 词元每秒/tok/s)"
    )

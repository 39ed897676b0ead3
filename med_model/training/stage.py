"""What the three training scripts do alike: their shared options, resuming, progress, and publishing the result."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from med_model import paths
from med_model.errors import UserError
from med_model.measures.evaluate import Evaluation, as_json, print_figures
from med_model.model.directory import check_replaceable, publish
from med_model.training.health import Warnings

CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


@dataclass
class StageArguments:
    """Options that every training script has."""

    _argument_group_name = "med_model"

    data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training data: files, folders, globs (.json .jsonl .csv .parquet .txt) or "
            "hf://datasets/OWNER/NAME/FILE. Default: the bundled set."
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out data in the same forms. Default: the bundled held-out set with the bundled data, else a "
            "part split off from --data."
        },
    )
    max_records: int | None = field(default=None, metadata={"help": "Use only the first so many records of --data."})
    input_model: str = field(default="", metadata={"help": "Directory of the stage before."})
    output_model: str = field(default="", metadata={"help": "Directory to publish the model in."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an existing --output_model and old checkpoints."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest complete checkpoint in --output_dir."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Stop after the pre-flight: data, device, memory, disk and time, no training."},
    )


def newest_checkpoint(output_dir: str | Path, processes: int = 1) -> Path | None:
    """The complete checkpoint with the highest step; one that was cut off while being written is passed over."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        whole = all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size for name in CHECKPOINT_FILES)
        if whole and len(list(checkpoint.glob("rng_state*.pth"))) >= processes:
            return checkpoint
        print(f"检查点不完整，跳过/incomplete checkpoint passed over: {paths.shown(checkpoint)}")
    return None


def check_output(stage: StageArguments, training: TrainingArguments) -> str | None:
    """The checkpoint to resume from, or None; UserError where something would be overwritten unasked."""
    check_replaceable(stage.output_model, stage.overwrite, marker="config.json")
    if training.n_gpu > 1:
        raise UserError(
            f"{training.n_gpu} 块 GPU/GPUs in one process: run torchrun --nproc_per_node {training.n_gpu} SCRIPT, "
            "or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > training.world_size:
        raise UserError("torchrun 的各进程互不相连/the processes of torchrun would run apart here: add --use_cpu True")
    old = list(Path(training.output_dir).glob("checkpoint-*"))
    if stage.resume:
        checkpoint = newest_checkpoint(training.output_dir, training.world_size)
        if checkpoint is None:
            raise UserError(
                f"没有完整的检查点/no complete checkpoint in {paths.shown(training.output_dir)}/: run without --resume"
            )
        return str(checkpoint)
    if old and not stage.overwrite:
        raise UserError(
            f"已有检查点/{paths.shown(training.output_dir)}/ holds {old[0].name} of an earlier run: --resume goes on "
            "from it, --overwrite starts anew, --output_dir DIR writes elsewhere"
        )
    return None


class ProgressLine(TrainerCallback):
    """A bar with loss, held-out loss and real tokens per second of training; no terminal: a line for each log."""

    NAMES = {
        "loss": "损失/loss",
        "eval_loss": "验证/held-out",
        "rewards/accuracies": "偏好/acc",
        "rewards/margins": "间隔/margin",
    }

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = args.disable_tqdm or not sys.stderr.isatty()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=hidden, dynamic_ncols=True)
        self.shown: dict[str, str] = {}
        self.begin, self.begin_step, self.begin_tokens = time.time(), state.global_step, state.num_input_tokens_seen
        self.step_seconds = 0.0  # without evaluation and saving

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_begin = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.step_seconds += time.time() - self.step_begin
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs, **kwargs):
        if not state.is_world_process_zero or "train_loss" in logs:  # the summary at the end
            return
        self.shown |= {name: f"{logs[key]:.3f}" for key, name in self.NAMES.items() if key in logs}
        tokens = state.num_input_tokens_seen - self.begin_tokens
        self.shown["词元每秒/tok/s"] = f"{tokens / max(self.step_seconds, 1e-9):,.0f}"
        self.bar.set_postfix(self.shown)
        if self.bar.disable:
            each = (time.time() - self.begin) / max(1, state.global_step - self.begin_step)
            left = each * (state.max_steps - state.global_step)
            figures = "  ".join(f"{name} {value}" for name, value in self.shown.items())
            print(f"[{state.global_step}/{state.max_steps}] {figures}  剩余/left {left / 60:.1f} min", flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train(
    trainer: Trainer, stage: StageArguments, checkpoint: str | None, callbacks: Sequence[TrainerCallback] = ()
) -> float:
    """Trains, from the checkpoint where there is one, and returns the seconds it took."""
    if checkpoint is None and trainer.is_world_process_zero():
        for old in Path(trainer.args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(old)  # only after --overwrite: check_output has seen to it
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    for callback in (ProgressLine(), *callbacks):
        trainer.add_callback(callback)
    start = time.time()
    trainer.train(resume_from_checkpoint=checkpoint)
    return time.time() - start


def finish(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    stage: StageArguments,
    *,
    title: str,
    stops: Sequence[str],
    evaluation: Evaluation,
    warnings: Warnings,
    metrics: dict,
) -> None:
    """Publishes the trained model with its measures, from one process only."""
    if not trainer.is_world_process_zero():
        return
    metrics["measures"] = as_json(print_figures(evaluation))
    args = trainer.args
    names = ("input_model", "output_model", "retention_model")
    directories = {name: paths.shown(directory) for name in names if (directory := getattr(stage, name, None))}
    settings = {
        **asdict(stage),
        **directories,
        "learning_rate": args.learning_rate,
        "schedule": args.lr_scheduler_type.value,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "steps": trainer.state.global_step,
        "seed": args.seed,
        "device": str(args.device),
        "bf16": args.bf16,
    }
    publish(
        trainer.model,
        tokenizer,
        stage.output_model,
        title=title,
        stops=stops,
        metrics={
            **metrics,
            "warnings": warnings.lines,
            "tokens_seen": trainer.state.num_input_tokens_seen,
            "settings": settings,
        },
        log_history=trainer.state.log_history,
    )

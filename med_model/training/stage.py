"""Define the common parts of the three training scripts: options, checks, training, and publishing the model."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from med_model import paths
from med_model.errors import UserError
from med_model.language import tr
from med_model.measures.evaluate import evaluate
from med_model.measures.heldout import Heldout
from med_model.measures.record import as_json
from med_model.measures.table import print_figures
from med_model.model.directory import check_replaceable, publish
from med_model.screen import say
from med_model.training.health import HealthLines
from med_model.training.preflight import smaller_batch
from med_model.training.progress import LogFile, ProgressLine, TimeLeft, Workload, remove_library_progress

# A checkpoint is complete if none of these files is missing or empty, and if each process of the training has saved
# the state of its random generators (rng_state*.pth).
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
# These options are paths. In metrics.json, a path inside the project folder is relative to this folder.
DIRECTORY_OPTIONS = ("input_model", "output_model", "retention_model")


@dataclass
class StageArguments:
    """Options of every training script."""

    _argument_group_name = "med_model"

    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Training data: files, folders, globs (.json .jsonl .csv .parquet .txt) or "
                "hf://datasets/OWNER/NAME/FILE. Default: the bundled set."
            )
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Held-out data in the same forms. Default: the bundled held-out set with the bundled data, else a "
                "part split off from --data."
            )
        },
    )
    max_records: int | None = field(
        default=None, metadata={"help": tr("Use only this many records from the start of --data.")}
    )
    input_model: str = field(default="", metadata={"help": tr("Directory that the stage before has made.")})
    output_model: str = field(default="", metadata={"help": tr("Directory to publish the model in.")})
    overwrite: bool = field(
        default=False, metadata={"help": tr("Replace an existing --output_model and old checkpoints.")}
    )
    resume: bool = field(
        default=False, metadata={"help": tr("Go on from the newest complete checkpoint in --output_dir.")}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": tr(
                "Print the pre-flight lines, train four steps for the time left, and stop. Nothing is published."
            )
        },
    )


def newest_checkpoint(output_dir: str | Path, processes: int = 1) -> Path | None:
    """Return the directory of the complete checkpoint with the highest step, or None if no checkpoint is complete.

    A run that ends while it writes a checkpoint leaves this checkpoint incomplete. Print one line for each incomplete
    checkpoint with a higher step than the returned one.
    processes: number of training processes. Each process saves its random state in a file of the checkpoint.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        whole = all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size for name in CHECKPOINT_FILES)
        if whole and len(list(checkpoint.glob("rng_state*.pth"))) >= processes:
            return checkpoint
        say(tr("The checkpoint {checkpoint} is not complete and is passed over.", checkpoint=paths.shown(checkpoint)))
    return None


def check_output(stage: StageArguments, training: TrainingArguments) -> str | None:
    """Return the directory of the checkpoint to resume from. Return None without --resume.

    Raise UserError in these cases:
    - --output_model exists, and --overwrite is not given;
    - --output_model exists and is not a model directory: it has no config.json;
    - one process sees several GPUs, or each process of torchrun would train on its own;
    - --resume is given, and there is no complete checkpoint;
    - there is an old checkpoint, and neither --resume nor --overwrite is given.
    """
    check_replaceable(stage.output_model, stage.overwrite, marker="config.json")
    _check_processes(training)
    old = list(Path(training.output_dir).glob("checkpoint-*"))
    if stage.resume:
        checkpoint = newest_checkpoint(training.output_dir, training.world_size)
        if checkpoint is None:
            raise UserError(
                tr(
                    "There is no complete checkpoint in {folder}/. Run without --resume.",
                    folder=paths.shown(training.output_dir),
                )
            )
        return str(checkpoint)
    if old and not stage.overwrite:
        raise UserError(
            tr(
                "{folder}/ holds {checkpoint} of an earlier run. --resume goes on from it, --overwrite starts anew, "
                "--output_dir DIR writes elsewhere.",
                folder=paths.shown(training.output_dir),
                checkpoint=old[0].name,
            )
        )
    return None


def _check_processes(training: TrainingArguments) -> None:
    if training.n_gpu > 1:
        raise UserError(
            tr(
                "One process sees {count} GPUs. Run torchrun --nproc_per_node {count} SCRIPT, or show it one GPU with "
                "CUDA_VISIBLE_DEVICES=0.",
                count=training.n_gpu,
            )
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > training.world_size:
        raise UserError(tr("The processes of torchrun would train apart from each other here. Add --use_cpu True."))


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Raise UserError if --max_length is larger than the number of the model's positions."""
    if max_length > model.config.n_positions:
        raise UserError(
            tr(
                "--max_length {length} is above the {positions} positions of the model. Give at most {positions}.",
                length=max_length,
                positions=model.config.n_positions,
            )
        )


def train(
    trainer: Trainer,
    stage: StageArguments,
    workload: Workload,
    checkpoint: str | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train, and return the time in seconds. `checkpoint` is the directory to resume from, or None for a new start.

    A new start deletes old checkpoints. A dry run deletes nothing, saves nothing, and stops after at most four steps.
    Raise UserError if the memory of a GPU is too small. A callback can also raise UserError.
    """
    remove_library_progress(trainer)
    if stage.dry_run:
        trainer.args.eval_on_start = trainer.args.load_best_model_at_end = False
        trainer.args.save_total_limit = None  # with a limit, the Trainer may delete an old checkpoint at the end
    else:
        if checkpoint is None and trainer.is_world_process_zero():
            for old in Path(trainer.args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(old)  # `check_output` has made sure that --overwrite is given
        for callback in (ProgressLine(), LogFile(), *callbacks):
            trainer.add_callback(callback)
    trainer.add_callback(TimeLeft(trainer, workload, stage.dry_run))
    start = time.time()
    train_in_memory(trainer, checkpoint)
    return time.time() - start


def train_in_memory(trainer: Trainer, checkpoint: str | None = None) -> None:
    """Train, and raise UserError if the memory of a GPU is too small. For `checkpoint` see `train`."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(
            tr("The memory of the GPU is too small. {advice}", advice=smaller_batch(trainer.args))
        ) from error


def finish(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    stage: StageArguments,
    *,
    title: str,
    heldout: Heldout,
    chat: bool,
    health: HealthLines,
    metrics: dict,
) -> None:
    """Measure the model on `heldout`, print the figures, and publish the model. Only the first process does this.

    title: the heading of the model's card (README.md). chat: False for a base model. health: the warnings of the run.
    metrics: more values for metrics.json. Raise UserError as `evaluate` does.
    """
    if not trainer.is_world_process_zero():
        return
    trainer.model.eval()
    measures = as_json(print_figures(evaluate(trainer.model, tokenizer, heldout, chat).measures))
    publish(
        trainer.model,
        tokenizer,
        stage.output_model,
        title=title,
        chat=chat,
        metrics={
            **metrics,
            "measures": measures,
            "warnings": health.lines,
            "tokens_seen": trainer.state.num_input_tokens_seen,
            "settings": _settings(trainer, stage),
        },
        log_history=trainer.state.log_history,
    )


def _settings(trainer: Trainer, stage: StageArguments) -> dict:
    """Return the options of the stage and the main settings of the Trainer, for metrics.json."""
    args = trainer.args
    options = {
        name: paths.shown(value) if name in DIRECTORY_OPTIONS and value else value
        for name, value in asdict(stage).items()
    }
    return {
        **options,
        "learning_rate": args.learning_rate,
        "schedule": args.lr_scheduler_type.value,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "steps": trainer.state.global_step,
        "seed": args.seed,
        "device": str(args.device),
        "bf16": args.bf16,
    }

"""Show the progress of a training in a bar and a log file. After the first steps, print the time left."""

import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from med_model.language import tr
from med_model.screen import say

TIMED_STEPS = 3  # steps 2 to 4 of a run are timed: step 1 is slow, and it may have the longest rows
EVALUATION_SHARE = 1 / 3  # time per held-out token / time per training token: an evaluation has no backward pass


class Workload(NamedTuple):
    """The size of a training, in input tokens."""

    tokens: int  # in one epoch
    longest: int  # in the longest row
    heldout_tokens: int = 0  # in one evaluation
    retention_tokens: int = 0  # of plain text for the KL regularization, in one batch


def count_steps(trainer: Trainer) -> tuple[int, int]:
    """Return (steps per epoch, steps of the whole training), counted as the Trainer does."""
    training = trainer.args
    batches = len(trainer.train_dataset) / (training.train_batch_size * training.world_size)
    batches = math.floor(batches) if training.dataloader_drop_last else math.ceil(batches)
    epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return epoch, training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * epoch)


def count_evaluations(training: TrainingArguments, epoch: int, steps: int) -> int:
    """Return the number of evaluations in a training of `steps` steps, with `epoch` steps per epoch."""
    if training.eval_strategy == "no":
        return 0
    if training.eval_strategy == "epoch":
        return math.ceil(steps / epoch)
    every = training.eval_steps if training.eval_steps >= 1 else math.ceil(training.eval_steps * steps)
    return math.ceil(steps / every)  # the Trainer also evaluates after the last step


def remove_library_progress(trainer: Trainer) -> None:
    """Remove the bar and the printed logs of the Trainer itself."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)


class TimeLeft(TrainerCallback):
    """Time the first steps of this run, then print the time left. A dry run stops after these steps.

    A dry run does not evaluate, save or log. Add this callback last. The Trainer's own callback sets the same control
    flags, so it must run before this one.
    """

    def __init__(self, trainer: Trainer, workload: Workload, dry_run: bool):
        self.workload, self.dry_run = workload, dry_run
        self.epoch, self.steps = count_steps(trainer)

    def on_train_begin(self, args, state, control, **kwargs):
        self.done, self.seconds, self.tokens = 0, 0.0, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin, self.begin_tokens = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        self.done += 1
        if 1 < self.done <= 1 + TIMED_STEPS:
            self.seconds += time.perf_counter() - self.begin
            self.tokens += state.num_input_tokens_seen - self.begin_tokens
        last = self.done == 1 + TIMED_STEPS or state.global_step >= state.max_steps
        if last and 1 < self.done <= 1 + TIMED_STEPS:
            self._print(args, state.global_step)
        if self.dry_run:
            control.should_evaluate = control.should_save = control.should_log = False
            control.should_training_stop = control.should_training_stop or last

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.dry_run:
            control.should_evaluate = control.should_save = control.should_log = False

    def _print(self, training: TrainingArguments, step: int) -> None:
        tokens_per_step = self.workload.tokens / self.epoch
        timed_tokens = self.tokens or (self.done - 1) * tokens_per_step  # self.tokens is 0 if the Trainer counts none
        seconds_per_token = self.seconds / timed_tokens
        share_left = 1 - step / self.steps
        evaluations = count_evaluations(training, self.epoch, self.steps) * share_left
        training_seconds = seconds_per_token * tokens_per_step * self.steps * share_left
        evaluation_seconds = seconds_per_token * EVALUATION_SHARE * self.workload.heldout_tokens * evaluations
        say(
            tr(
                "Time left: about {minutes:.1f} min, {evaluation:.1f} min of it for evaluation "
                "({rate:,.0f} tokens per second).",
                minutes=(training_seconds + evaluation_seconds) / 60,
                evaluation=evaluation_seconds / 60,
                rate=1 / seconds_per_token,
            )
        )


class ProgressLine(TrainerCallback):
    """Show a bar with the last figures and the tokens per second. If the bar is off, print one line per log."""

    NAMES = {
        "loss": tr("loss"),
        "eval_loss": tr("held-out"),  # short, so that the longest line of DPO is not wrapped
        "rewards/accuracies": tr("accuracy"),
        "rewards/margins": tr("margin"),
    }

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = args.disable_tqdm or not sys.stderr.isatty() or not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=hidden, dynamic_ncols=True)
        self.figures: dict[str, str] = {}
        self.begin, self.begin_step, self.begin_tokens = time.time(), state.global_step, state.num_input_tokens_seen
        self.step_seconds = 0.0  # time of the steps, without evaluation and saving
        self.ended = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_begin = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.step_seconds += time.time() - self.step_begin
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs, **kwargs):
        if self.ended or not state.is_world_process_zero or "train_loss" in logs:  # the final log is a summary
            return
        self.figures |= {key: f"{logs[key]:.3f}" for key in self.NAMES if key in logs}
        tokens = state.num_input_tokens_seen - self.begin_tokens
        named = {name: self.figures[key] for key, name in self.NAMES.items() if key in self.figures}
        named[tr("tokens/s")] = f"{tokens / max(self.step_seconds, 1e-9):,.0f}"
        self.bar.set_postfix(named)
        if self.bar.disable:
            seconds_per_step = (time.time() - self.begin) / max(1, state.global_step - self.begin_step)
            minutes = seconds_per_step * (state.max_steps - state.global_step) / 60
            figures = "  ".join(f"{name} {value}" for name, value in named.items())
            left = tr("{minutes} min left", minutes=f"{minutes:.{0 if minutes >= 10 else 1}f}")
            say(f"[{state.global_step}/{state.max_steps}] {figures}  {left}")

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = True  # then on_log ignores an evaluation after the training
        self.bar.close()


class LogFile(TrainerCallback):
    """Write `output_dir/log.jsonl`, one JSON line per log. A resumed run first writes the logs of its checkpoint."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.file = Path(args.output_dir) / "log.jsonl"
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", state.log_history)

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._write("a", state.log_history[-1:])

    def _write(self, mode: str, entries: list[dict]) -> None:
        with self.file.open(mode, encoding="utf-8") as lines:
            lines.writelines(json.dumps(entry) + "\n" for entry in entries)

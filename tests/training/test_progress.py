"""Check training/progress.py: the time left, the log file, and the progress line."""

import copy
import io
import itertools
import json
import random
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import STAGES, WORKLOAD, train_stage, workload_of
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from med_model.screen import COLUMNS
from med_model.training import progress
from med_model.training.progress import LogFile, ProgressLine, TimeLeft, Workload, count_evaluations, count_steps

pytestmark = pytest.mark.usefixtures("wide_screen")

# A dry run sets these options. With other values, the Trainer could evaluate at the start, and load or delete
# checkpoints at the end.
NO_CHECKPOINTS = {"save_total_limit": None, "load_best_model_at_end": False, "eval_on_start": False}


def without_times(log_history: list[dict]) -> list[dict]:
    """Return the logs without the times, without `num_tokens`, and without the summary at the end.

    `num_tokens` is left out because TRL starts this count again after a resume.
    """
    return [
        {key: value for key, value in entry.items() if not key.endswith(("per_second", "runtime", "num_tokens"))}
        for entry in log_history
        if "train_loss" not in entry
    ]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"dataloader_drop_last": True}])
def test_count_steps_counts_as_the_trainer_does(options, new_trainer):
    trainer = new_trainer("sft", max_steps=-1, num_train_epochs=0.5, **options)
    _, steps = count_steps(trainer)
    trainer.train()
    assert steps == trainer.state.global_step == trainer.state.max_steps


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "no"},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 0.4},
        {"eval_strategy": "steps", "eval_steps": 7},
    ],
    ids=["none", "epochs", "share of the steps", "steps"],
)
def test_count_evaluations_counts_as_the_trainer_does(options, new_trainer):
    trainer = new_trainer("pretraining", max_steps=20, logging_steps=20, **options)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert count_evaluations(trainer.args, *count_steps(trainer)) == len(evaluations)


def next_random_numbers() -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random()]


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_time_left_leaves_the_training_bit_identical(stage, new_trainer):
    trained = []
    for timed in (False, True):
        trainer = new_trainer(stage, max_steps=6, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=5)
        start = copy.deepcopy(trainer.model.state_dict())
        if timed:
            trainer.add_callback(TimeLeft(trainer, WORKLOAD, dry_run=False))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 6 and not torch.equal(start["lm_head.weight"], trainer.model.lm_head.weight)
        logs = without_times(trainer.state.log_history)
        trained.append((trainer.model.state_dict(), logs, trainer.control, next_random_numbers()))
    (plain, plain_logs, plain_control, plain_numbers), (after, after_logs, after_control, after_numbers) = trained
    for name, weight in plain.items():
        assert torch.equal(weight, after[name]), name
    assert plain_logs == after_logs and plain_control == after_control and plain_numbers == after_numbers


class Clock(TrainerCallback):
    """Keep the time at the end of each step, in seconds."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


@pytest.fixture
def announced(monkeypatch) -> dict[str, float]:
    """Return an empty dict. When the line with the time left is printed, its unrounded figures enter the dict."""
    figures: dict[str, float] = {}

    def tr(message: str, **values: float) -> str:
        figures.update(values)
        return message.format(**values)

    monkeypatch.setattr(progress, "tr", tr)
    return figures


@pytest.mark.long
@pytest.mark.parametrize(
    "stage, counted", [("pretraining", "all"), ("sft", "non_padding"), ("dpo", "non_padding"), ("pretraining", "no")]
)
def test_time_left_is_within_a_factor_of_three_of_the_real_one(stage, counted, new_trainer, announced):
    ratios = []
    # Train up to 4 times: another program may slow down a training.
    while not ratios or (len(ratios) < 4 and not 1 / 3 < ratios[-1] < 3):
        trainer, clock = new_trainer(stage, max_steps=20, include_num_input_tokens_seen=counted), Clock()
        trainer.add_callback(clock)
        trainer.add_callback(TimeLeft(trainer, workload_of(trainer), dry_run=False))
        trainer.train()
        ratios.append(60 * announced["minutes"] / (clock.ends[-1] - clock.ends[3]))
    assert 1 / 3 < ratios[-1] < 3, ratios
    assert announced["evaluation"] == 0


def take_steps(callback: TimeLeft, training: TrainingArguments, first: int, count: int, max_steps: int) -> list[bool]:
    """Run the callback for `count` steps of 128 tokens. Return for each step whether the training must stop."""
    state, control, stops = TrainerState(max_steps=max_steps, global_step=first), TrainerControl(), []
    callback.on_train_begin(training, state, control)
    for _ in range(count):
        callback.on_step_begin(training, state, control)
        state.num_input_tokens_seen += 128
        state.global_step += 1
        callback.on_step_end(training, state, control)
        stops.append(control.should_training_stop)
    return stops


def test_time_left_counts_epochs_evaluations_and_the_steps_of_a_checkpoint(
    new_trainer, monkeypatch, capsys, announced
):
    trainer = new_trainer("pretraining", max_steps=20)  # 20 steps of 4 blocks are two epochs of 40 blocks
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 0.4  # evaluate at steps 8, 16 and 20
    workload = Workload(tokens=1_280, longest=64, heldout_tokens=384)
    for first, share_left in ((0, 16 / 20), (10, 6 / 20)):
        # The first step lasts 100 seconds and is not timed. Each of the three timed steps lasts 7 seconds.
        ticks = iter([0, 100, 107, 107, 114, 114, 121, 121])
        monkeypatch.setattr(progress.time, "perf_counter", lambda ticks=ticks: next(ticks))
        assert not any(take_steps(TimeLeft(trainer, workload, dry_run=False), trainer.args, first, 5, 20))
        evaluation = 3 * share_left * 384 * 7 / 128 / 3
        training = 20 * share_left * 7
        assert announced["minutes"] == pytest.approx((training + evaluation) / 60)
        assert announced["evaluation"] == pytest.approx(evaluation / 60)
        assert announced["rate"] == pytest.approx(128 / 7)
        (line,) = capsys.readouterr().out.splitlines()
        assert re.fullmatch(
            r"Time left: about \d+\.\d min, \d+\.\d min of it for evaluation \(18 tokens per second\)\.", line
        )


def test_time_left_is_printed_after_the_last_step_of_a_shorter_run(new_trainer, capsys):
    for steps, printed in ((1, 0), (2, 1), (4, 1), (6, 1)):
        trainer = new_trainer("pretraining", max_steps=steps)
        take_steps(TimeLeft(trainer, WORKLOAD, dry_run=False), trainer.args, 0, steps, steps)
        lines = capsys.readouterr().out.splitlines()
        assert [line[: len("Time left")] for line in lines] == ["Time left"] * printed


def test_time_left_is_printed_on_the_first_process_only(new_trainer, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    trainer = new_trainer("pretraining", max_steps=6)
    for dry_run, stops in ((False, [False] * 5), (True, [False, False, False, True, True])):
        assert take_steps(TimeLeft(trainer, WORKLOAD, dry_run), trainer.args, 0, 5, 6) == stops, "each process stops"
    assert capsys.readouterr().out == ""


@pytest.mark.long
@pytest.mark.parametrize("due", ["steps", "epoch"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_takes_four_steps_and_neither_evaluates_nor_saves_nor_logs(
    stage, due, new_trainer, monkeypatch, capsys, tmp_path
):
    # Saving, evaluation and logging are due at each step, or after each epoch of two steps.
    often = {"save_strategy": due, "save_steps": 1, "logging_strategy": due, "eval_strategy": due, "eval_steps": 1}
    trainer = new_trainer(stage, per_device_train_batch_size=30, max_steps=9, **often)
    training_step, steps = type(trainer).training_step, []

    def counted_step(*args, **kwargs):
        steps.append(1)
        return training_step(*args, **kwargs)

    def evaluate(*args, **kwargs):
        raise AssertionError("an evaluation was run")

    monkeypatch.setattr(type(trainer), "training_step", counted_step)
    monkeypatch.setattr(type(trainer), "evaluate", evaluate)
    arguments = trainer.args.to_dict()
    train_stage(trainer, dry_run=True)
    assert len(steps) == trainer.state.global_step == 4 and trainer.args.to_dict() == arguments | NO_CHECKPOINTS
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert [entry for entry in trainer.state.log_history if "train_loss" not in entry] == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Time left: about ")


def test_a_dry_run_stops_at_the_last_step_of_a_shorter_training(new_trainer, capsys):
    trainer = new_trainer("pretraining", max_steps=2)
    train_stage(trainer, dry_run=True)
    assert trainer.state.global_step == 2
    assert capsys.readouterr().out.startswith("Time left: about 0.0 min")


def log_entries(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_log_file_has_a_line_per_log(stage, new_trainer, tmp_path):
    trainer = new_trainer(stage, max_steps=6, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(LogFile())
    trainer.train()
    entries = log_entries(tmp_path / "checkpoints")
    assert entries == trainer.state.log_history
    assert [entry["step"] for entry in entries] == [1, 2, 3, 3, 4, 5, 6, 6, 6]
    trainer.evaluate()  # the scripts of SFT and DPO also evaluate after the training
    after = log_entries(tmp_path / "checkpoints")
    assert after == trainer.state.log_history and len(after) == len(entries) + 1


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_log_file_of_a_resumed_run_equals_that_of_the_whole_run(stage, new_trainer, tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    train_stage(new_trainer(stage, **options))
    whole = log_entries(folder)
    (folder / "log.jsonl").write_text("a line of another run\n", encoding="utf-8")
    train_stage(new_trainer(stage, **options), checkpoint=str(folder / "checkpoint-4"))
    resumed = log_entries(folder)
    assert [entry.keys() for entry in resumed] == [entry.keys() for entry in whole] and len(whole) == 10
    assert without_times(resumed) == without_times(whole)


def test_log_file_is_written_by_the_first_process_only(tmp_path):
    args, state = SimpleNamespace(output_dir=str(tmp_path / "new")), TrainerState(is_world_process_zero=False)
    state.log_history.append({"loss": 1.0, "step": 1})
    log_file = LogFile()
    log_file.on_train_begin(args, state, None)
    log_file.on_log(args, state, None)
    assert not (tmp_path / "new").exists()


LOGS = [
    {"loss": 5.25, "grad_norm": 1.0},
    {"eval_loss": 5.5, "eval_runtime": 1.0},
    {"loss": 5.0, "rewards/accuracies": 0.75, "rewards/margins": 1.5},
]


def show(
    logs: list[dict], stderr: io.StringIO, monkeypatch, first_process: bool = True, done: int = 0, steps: int = 10
) -> ProgressLine:
    """Give the logs to a new ProgressLine, each log after one step of 100 tokens. Return the ProgressLine.

    done: number of steps before a resume. steps: number of steps of the whole run.
    """
    monkeypatch.setattr(sys, "stderr", stderr)
    args = SimpleNamespace(disable_tqdm=False)
    state = TrainerState(max_steps=steps, global_step=done, is_world_process_zero=first_process)
    line = ProgressLine()
    line.on_train_begin(args, state, None)
    for entry in logs:
        line.on_step_begin(args, state, None)
        state.global_step += 1
        state.num_input_tokens_seen += 100
        line.on_step_end(args, state, None)
        line.on_log(args, state, None, entry)
    line.on_train_end(args, state, None)
    return line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_line_prints_a_line_per_log_without_a_terminal(monkeypatch, capsys):
    stderr = io.StringIO()
    show([*LOGS, {"train_loss": 5.1}], stderr, monkeypatch)
    first, second, third = capsys.readouterr().out.splitlines()
    figures = r"\[1/10\] loss 5\.250  tokens/s [\d,]+  \d+\.\d min left"
    assert re.fullmatch(figures, first), first
    assert "[2/10] loss 5.250  held-out 5.500  tokens/s" in second
    assert "loss 5.000" in third and "accuracy 0.750" in third and "margin 1.500" in third
    assert stderr.getvalue() == ""


def test_a_line_of_a_long_dpo_run_fits_on_the_screen(monkeypatch, capsys):
    logs = [{"loss": 2.345, "rewards/accuracies": 0.75, "rewards/margins": 12.345}, {"eval_loss": 12.345}]
    monkeypatch.setattr(progress.time, "time", itertools.count(0, 0.05).__next__)  # a step of 100 tokens takes 0.05 s
    show(logs, io.StringIO(), monkeypatch, done=1_233, steps=9_999)
    _, last = capsys.readouterr().out.splitlines()
    figures = "loss 2.345  held-out 12.345  accuracy 0.750  margin 12.345  tokens/s "
    assert last.startswith(f"[1235/9999] {figures}") and len(last) <= COLUMNS


def test_progress_line_draws_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    show(LOGS, terminal, monkeypatch)
    assert capsys.readouterr().out == ""
    assert "3/10" in terminal.getvalue() and "loss=5.000" in terminal.getvalue()


@pytest.mark.parametrize(
    "stderr",
    [io.StringIO, Terminal],
)
def test_progress_line_shows_nothing_on_other_processes(stderr, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    stream = stderr()
    show(LOGS, stream, monkeypatch, first_process=False)
    assert capsys.readouterr().out == "" and stream.getvalue() == ""

"""med_model/preflight.py: what is printed before a stage trains, what stops it, and that it leaves no trace."""

import copy
import json
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import load_script
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from med_model import paths
from med_model.errors import UserError
from med_model.training import preflight
from med_model.training.retention import Retention

STAGES = ("pretraining", "sft", "dpo")
LONGEST = 64


@pytest.fixture(scope="module")
def scripts():
    return {
        "pretraining": load_script("pre_training/py/run_pretraining.py"),
        "sft": load_script("sft/py/sft_train.py"),
        "dpo": load_script("dpo/py/dpo_train.py"),
    }


def random_ids(count: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    numbers = np.random.default_rng(count)
    return [
        numbers.integers(4, vocabulary, size).tolist() for size in numbers.integers(shortest, longest + 1, size=count)
    ]


@pytest.fixture
def new_trainer(scripts, tokenizer, random_gpt2, tmp_path):
    """Makes a stage's trainer as its script does: the tiny model, dropout 0.1, batches of like length."""

    def make(stage: str, **options):
        set_seed(7)
        model, script, vocabulary = random_gpt2(128, 0.02), scripts[stage], len(tokenizer)
        assert model.config.resid_pdrop == model.config.attn_pdrop == 0.1
        common = {
            "output_dir": str(tmp_path / "checkpoints"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "train_sampling_strategy": "group_by_length",
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "seed": 7,
        } | options
        blocks = [
            {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
            for ids in random_ids(40, LONGEST, LONGEST, vocabulary)
        ]
        held = Retention(copy.deepcopy(model), blocks, 0.3)
        if stage == "pretraining":
            training = script.PretrainingArguments(**common)
            return script.new_trainer(model, tokenizer, training, blocks)
        if stage == "sft":
            rows = random_ids(41, 20, LONGEST, vocabulary)
            columns = {"input_ids": rows, "labels": [[-100] * 10 + row[10:] for row in rows]}
            training = script.SFTArguments(**common)
            return script.new_trainer(model, tokenizer, training, Dataset.from_dict(columns), retention=held)
        parts = [random_ids(42 + part, 10, LONGEST // 2, vocabulary)[:42] for part in range(3)]
        pairs = [script.Pair(*of_pair) for of_pair in zip(*parts, strict=True)]
        dataset = script.dataset_of(pairs, [(-200.0, -210.0)] * len(pairs))
        return script.new_trainer(model, tokenizer, script.DPOArguments(**common), dataset, retention=held)

    return make


def next_random_numbers() -> list[float]:
    return [torch.rand(()).item(), np.random.random(), random.random()]


@pytest.mark.parametrize("stage", STAGES)
def test_training_after_timed_steps_is_bit_identical_to_training_without(stage, new_trainer):
    trained = []
    for timed in (False, True):
        trainer = new_trainer(stage, gradient_accumulation_steps=2)
        start = copy.deepcopy(trainer.model.state_dict())
        if timed:
            preflight.time_steps(trainer, steps=2)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 4 and not torch.equal(start["lm_head.weight"], trainer.model.lm_head.weight)
        logs = [{k: v for k, v in e.items() if not k.startswith("train_")} for e in trainer.state.log_history]
        logs = [{k: v for k, v in e.items() if "per_second" not in k and "runtime" not in k} for e in logs]
        trained.append((trainer.model.state_dict(), logs, next_random_numbers()))
    (plain, plain_logs, plain_numbers), (after, after_logs, after_numbers) = trained
    for name, weight in plain.items():
        assert torch.equal(weight, after[name]), name
    assert plain_logs == after_logs and plain_numbers == after_numbers


@pytest.mark.parametrize("due", ["steps", "epoch"])
@pytest.mark.parametrize("stage", STAGES)
def test_timing_steps_touches_neither_trainer_nor_random_numbers_nor_disk(
    stage, due, new_trainer, monkeypatch, tmp_path
):
    # Saving, evaluation and logging would all come due within the steps that are timed, where an epoch has two.
    often = {"save_strategy": due, "save_steps": 1, "logging_strategy": due, "eval_on_start": True}
    untold = {"include_num_input_tokens_seen": "no"}
    trainer = new_trainer(stage, per_device_train_batch_size=30, **often, **untold)
    before, weights = dict(vars(trainer)), copy.deepcopy(trainer.model.state_dict())
    within = {name: copy.deepcopy(before.get(name)) for name in ("control", "state", "_metrics")}
    arguments = trainer.args.to_dict()
    numbers = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    training_step, run = type(trainer).training_step, []

    def random_step(*args, **kwargs):  # as a collator may draw from these too
        run.append((np.random.random(), random.random()))
        return training_step(*args, **kwargs)

    monkeypatch.setattr(type(trainer), "training_step", random_step)
    assert 0 < preflight.time_steps(trainer, steps=2) < 1

    assert len(run) == 3, "a warm-up and the two"
    assert vars(trainer).keys() == before.keys()
    assert [name for name, value in vars(trainer).items() if value is not before[name]] == []
    assert all(vars(trainer).get(name) == value for name, value in within.items())
    assert trainer.args.to_dict() == arguments
    assert not trainer.model.training and all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.model.state_dict().items())
    assert trainer.optimizer is None or not trainer.optimizer.state
    assert torch.equal(torch.get_rng_state(), numbers[0]) and random.getstate() == numbers[2]
    assert np.array_equal(np.random.get_state()[1], numbers[1])
    assert not trainer.accelerator.gradient_state.in_dataloader
    assert [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()] == []


class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.ends = [*getattr(self, "ends", []), (time.perf_counter(), state.num_input_tokens_seen)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_timed_steps_tell_the_time_of_the_training(stage, new_trainer):
    ratios = []
    while not ratios or (len(ratios) < 4 and not 1 / 3 < ratios[-1] < 3):  # something else may hold the processor up
        trainer, clock = new_trainer(stage, max_steps=20, include_num_input_tokens_seen="all"), Clock()
        second = preflight.time_steps(trainer, steps=6)
        trainer.add_callback(clock)
        trainer.train()
        (begin, before), (end, after) = clock.ends[0], clock.ends[-1]
        ratios.append(second / ((end - begin) / (after - before)))
    assert 1 / 3 < ratios[-1] < 3, ratios


def test_a_gpu_without_room_for_the_steps_names_a_smaller_batch(new_trainer, monkeypatch):
    trainer = new_trainer("pretraining", gradient_accumulation_steps=3)

    def training_step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(trainer), "training_step", training_step)
    with pytest.raises(UserError, match="--per_device_train_batch_size 2 --gradient_accumulation_steps 6"):
        preflight.time_steps(trainer)


def test_the_installed_packages_are_those_of_requirements_txt():
    assert preflight.check_versions() == []


def test_packages_out_of_range_and_missing_ones_are_named(tmp_path, monkeypatch):
    lines = ["torch==2.13.0", "# a comment", "transformers>=4,<5  # why", "no-such-package==1.0", "", "-e ."]
    (tmp_path / "requirements.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    found = {"torch": "2.13.0+cpu", "transformers": "5.0.0rc1"}

    def version(name: str) -> str:
        if name not in found:
            raise preflight.importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(preflight.importlib.metadata, "version", version)
    transformers, missing = preflight.check_versions()
    assert "transformers 5.0.0rc1" in transformers and "<5" in transformers and ">=4" in transformers
    assert "no-such-package" in missing and "not installed" in missing and "==1.0" in missing


def with_free(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=free, used=0, free=free))


def test_too_little_disk_stops_and_names_need_free_and_the_knobs(new_trainer, monkeypatch, tmp_path):
    trainer = new_trainer("dpo", save_strategy="steps", save_total_limit=2)
    weights = 4 * trainer.model.num_parameters()
    need = 3 * 3 * weights + weights  # two kept and one being written, AdamW's moments in each; and the model
    with_free(monkeypatch, need)
    preflight.check_disk(trainer.args, trainer.model, tmp_path / "new" / "model")
    monkeypatch.setattr(preflight, "_gb", lambda size: f"{size} bytes")
    with_free(monkeypatch, need - 1)
    with pytest.raises(UserError) as stopped:
        preflight.check_disk(trainer.args, trainer.model, tmp_path / "new" / "model")
    for told in (f"{need} bytes", f"{need - 1} bytes", "--output_dir", "--save_total_limit 1"):
        assert told in str(stopped.value)


def test_the_disk_needed_follows_the_checkpoints_that_stand_at_once(new_trainer, monkeypatch, tmp_path):
    with_free(monkeypatch, 10**12)

    def need(best: bool = False, **options) -> float:
        trainer = new_trainer("dpo", **options)
        trainer.args.load_best_model_at_end = best
        ((_, size, _),) = preflight._disk(trainer.args, trainer.model, tmp_path / "model")
        return size / (4 * trainer.model.num_parameters())

    assert need(save_strategy="no") == 1
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=1) == 2 * 3 + 1
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=None) == 5 * 3 + 1
    assert need(save_strategy="steps", save_steps=2, save_total_limit=None) == 3 + 1
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=1, best=True) == 3 * 3 + 1  # beside the last


def test_the_room_of_old_checkpoints_counts_as_free(new_trainer, monkeypatch, tmp_path):
    trainer = new_trainer("dpo", save_strategy="steps", save_steps=2)
    old = tmp_path / "checkpoints" / "checkpoint-2"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"0" * 1000)
    with_free(monkeypatch, 500)
    ((_, _, free),) = preflight._disk(trainer.args, trainer.model, tmp_path / "model")
    assert free == 1500


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizers_state_is_as_large_as_estimated(stage, new_trainer):
    trainer = new_trainer(stage, max_steps=1)
    estimate = preflight._optimizer_bytes(trainer.model, trainer.args)
    trainer.train()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert sum(state.nbytes for state in states if state.ndim) == estimate


def test_the_memory_estimated_grows_with_the_batch_and_holds_the_process(new_trainer, monkeypatch):
    monkeypatch.setattr(preflight, "_held_bytes", lambda device: 10**9)

    def estimate(stage: str, longest: int = 64, beside: int = 0, **options) -> int:
        trainer = new_trainer(stage, **options)
        return preflight.memory_estimate(trainer.model, trainer.args, longest, beside) - 10**9

    plain = estimate("pretraining")
    assert preflight.FIRST_STEP_BYTES < plain < 2 * preflight.FIRST_STEP_BYTES
    assert estimate("pretraining", per_device_train_batch_size=8) > plain
    assert estimate("pretraining", longest=128) > plain
    assert estimate("pretraining", muon=False) > plain
    assert estimate("sft", beside=64) > estimate("sft") > plain  # TRL's loss keeps probabilities
    sizes = [estimate("sft", longest=longest) for longest in (64, 128, 192)]
    assert sizes[2] - sizes[1] > sizes[1] - sizes[0]  # attention with dropout, on a CPU

    def four_more(stage: str, **options) -> int:
        return estimate(stage, per_device_train_batch_size=8, **options) - estimate(
            stage, per_device_train_batch_size=4, **options
        )

    assert four_more("dpo") == 2 * four_more("sft")  # its batch holds both answers
    assert 1 < four_more("dpo", disable_dropout=True) / four_more("sft") < 2


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_preflight_prints_a_line_for_each_thing_in_order(new_trainer, capsys, tmp_path):
    trainer = new_trainer("sft", max_steps=-1, num_train_epochs=3)
    preflight.preflight(trainer, output_model=tmp_path / "model", tokens=1_742, longest=64, heldout_tokens=100)
    lines = lines_of(capsys)
    begins = [
        "设备/device cpu",
        "版本/versions: Python 3.",
        "内存/memory: ",
        "硬盘/disk: ",
        "训练/training: ",
        "时间/time",
    ]
    assert len(lines) == len(begins), lines
    assert all(line.startswith(begin) for line, begin in zip(lines, begins, strict=True)), lines
    assert "精度/precision fp32" in lines[0] and f"threads {torch.get_num_threads()}" in lines[0]
    assert "torch 2." in lines[1] and "trl 1." in lines[1]
    # 41 rows in batches of 4, three times
    assert "1,742 词元/tokens" in lines[4] and "3 遍/epochs" in lines[4] and "33 步/steps" in lines[4]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"dataloader_drop_last": True}])
def test_steps_are_counted_as_the_trainer_counts_them(options, new_trainer):
    trainer = new_trainer("sft", max_steps=-1, num_train_epochs=0.5, **options)
    _, steps = preflight._count_steps(trainer)
    trainer.train()
    assert steps == trainer.state.global_step == trainer.state.max_steps


def test_the_time_left_counts_epochs_evaluations_and_what_a_checkpoint_has_done(
    new_trainer, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(preflight, "time_steps", lambda trainer: 0.06)
    trainer = new_trainer("pretraining", max_steps=20, save_strategy="no")  # two epochs of 40 blocks
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 0.4  # after 8, 16 and 20
    given = {"output_model": tmp_path / "model", "tokens": 2_000, "longest": 64, "heldout_tokens": 1_000}
    preflight.preflight(trainer, **given)
    last = lines_of(capsys)[-1]
    assert "5.0 min" in last and "evaluation 1.0 min" in last and "17 词元每秒/tok/s" in last
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 15}), encoding="utf-8")
    preflight.preflight(trainer, **given, checkpoint=str(tmp_path))
    last = lines_of(capsys)[-1]
    assert "约/about 1.2 min" in last


@pytest.mark.parametrize("batch, knob", [(4, "--per_device_train_batch_size 2"), (1, "a batch is one row already")])
def test_too_little_memory_is_a_warning_with_the_knob(batch, knob, new_trainer, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(preflight, "time_steps", lambda trainer: 1e-6)
    trainer = new_trainer("pretraining", per_device_train_batch_size=batch)
    for free, warned in ((10**6, True), (10**12, False)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        preflight.preflight(trainer, output_model=tmp_path / "model", tokens=2_560, longest=64)
        warnings = [line for line in lines_of(capsys) if "注意/warning" in line]
        assert len(warnings) == warned and all(knob in line for line in warnings)


def test_a_package_out_of_range_is_a_warning_with_the_command(new_trainer, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(preflight, "time_steps", lambda trainer: 1e-6)
    monkeypatch.setattr(preflight, "check_versions", lambda: ["torch 2.12.0, 要/wanted ==2.13.0"])
    preflight.preflight(new_trainer("dpo"), output_model=tmp_path / "model", tokens=2_560, longest=64)
    assert "注意/warning: torch 2.12.0, 要/wanted ==2.13.0: pip install -r requirements.txt" in lines_of(capsys)[2]


def test_too_little_disk_stops_preflight_before_a_step_is_run(new_trainer, monkeypatch, tmp_path):
    def time_steps(trainer):
        raise AssertionError("run")

    monkeypatch.setattr(preflight, "time_steps", time_steps)
    with_free(monkeypatch, 10)
    with pytest.raises(UserError, match="disk"):
        preflight.preflight(new_trainer("dpo"), output_model=tmp_path / "model", tokens=2_560, longest=64)


def test_only_the_first_process_prints_but_every_one_runs_the_steps(new_trainer, monkeypatch, capsys, tmp_path):
    trainer, called = new_trainer("dpo"), []
    monkeypatch.setattr(preflight, "time_steps", lambda trainer: called.append(trainer) or 1e-6)
    monkeypatch.setattr(type(trainer), "is_world_process_zero", lambda self: False)
    preflight.preflight(trainer, output_model=tmp_path / "model", tokens=2_560, longest=64)
    assert called == [trainer] and lines_of(capsys) == []

"""Check training/stage.py: the checks before a training, the training, and the publication of the model."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from small_runs import STAGES, WORKLOAD, train_stage

from med_model import paths
from med_model.errors import UserError
from med_model.measures.heldout import Heldout
from med_model.training import stage as stage_module
from med_model.training.health import HealthLines
from med_model.training.stage import (
    CHECKPOINT_FILES,
    StageArguments,
    check_output,
    check_positions,
    finish,
    newest_checkpoint,
    train,
)

pytestmark = pytest.mark.usefixtures("wide_screen")


def write_checkpoint(folder, step: int, left_out: str = "", processes: int = 1):
    """Write a checkpoint with one byte per file, without the file `left_out`. Return the checkpoint directory."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in (*CHECKPOINT_FILES, *(f"rng_state_{rank}.pth" for rank in range(processes))):
        if name != left_out:
            (checkpoint / name).write_bytes(b"0")
    return checkpoint


@pytest.mark.parametrize("left_out", [*CHECKPOINT_FILES, "rng_state_0.pth"])
def test_newest_checkpoint_passes_over_one_without_a_file(left_out, tmp_path, capsys):
    whole = write_checkpoint(tmp_path, 9)
    write_checkpoint(tmp_path, 10, left_out)
    write_checkpoint(tmp_path, 8)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == whole
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("checkpoint-10 is not complete and is passed over.")


def test_newest_checkpoint_passes_over_an_empty_file(tmp_path):
    (write_checkpoint(tmp_path, 2) / "optimizer.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None


def test_newest_checkpoint_wants_the_random_numbers_of_each_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    both = write_checkpoint(tmp_path, 2, processes=2)
    write_checkpoint(tmp_path, 4, processes=1)
    assert newest_checkpoint(tmp_path, processes=2) == both
    assert capsys.readouterr().out == "", "only the first process prints"


def training_of(folder, **options: object) -> SimpleNamespace:
    return SimpleNamespace(**{"output_dir": str(folder), "n_gpu": 0, "world_size": 1} | options)


def test_check_output_refuses_several_gpus_in_one_process(tmp_path):
    stage = StageArguments(output_model=str(tmp_path / "model"))
    with pytest.raises(UserError, match="2 GPUs.*torchrun --nproc_per_node 2.*CUDA_VISIBLE_DEVICES=0"):
        check_output(stage, training_of(tmp_path, n_gpu=2))


def test_check_output_refuses_processes_that_would_train_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    stage = StageArguments(output_model=str(tmp_path / "model"))
    with pytest.raises(UserError, match="--use_cpu True"):
        check_output(stage, training_of(tmp_path, world_size=1))
    assert check_output(stage, training_of(tmp_path, world_size=2)) is None


def test_check_positions_allows_rows_as_long_as_the_positions(random_gpt2):
    model = random_gpt2(128)
    check_positions(model, 128)
    with pytest.raises(UserError, match="--max_length 129 is above the 128 positions"):
        check_positions(model, 129)


@pytest.mark.long
def test_train_names_a_smaller_batch_if_the_memory_of_a_gpu_is_too_small(new_trainer, monkeypatch):
    trainer = new_trainer("pretraining", gradient_accumulation_steps=3)

    def training_step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(trainer), "training_step", training_step)
    for dry_run in (True, False):
        with pytest.raises(UserError, match="--per_device_train_batch_size 2 --gradient_accumulation_steps 6"):
            train_stage(trainer, dry_run)


@pytest.mark.long
def test_train_removes_old_checkpoints_unless_it_resumes_or_runs_dry(new_trainer, tmp_path):
    old = tmp_path / "checkpoints" / "checkpoint-99"
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    train_stage(new_trainer("pretraining", **options))
    write_checkpoint(tmp_path / "checkpoints", 99)
    train_stage(new_trainer("pretraining", **options), dry_run=True)
    train_stage(new_trainer("pretraining", **options), checkpoint=str(tmp_path / "checkpoints" / "checkpoint-1"))
    assert old.is_dir()
    train_stage(new_trainer("pretraining", **options))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "log.jsonl",
    ]


@pytest.mark.long
def test_train_keeps_the_checkpoint_that_a_dry_run_resumes_from(new_trainer, tmp_path):
    folder = tmp_path / "checkpoints"
    options = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
    }
    train_stage(new_trainer("pretraining", **options, save_total_limit=9))
    shutil.rmtree(folder / "checkpoint-6")
    newest = folder / "checkpoint-4"
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    state["best_model_checkpoint"] = str(folder / "checkpoint-2")
    (newest / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    train_stage(new_trainer("pretraining", **options, save_total_limit=1), dry_run=True, checkpoint=str(newest))
    assert newest.is_dir()


def test_train_does_not_evaluate_at_the_start_of_a_dry_run(new_trainer, monkeypatch):
    trainer, evaluated = new_trainer("pretraining", eval_on_start=True, eval_strategy="steps", eval_steps=1), []
    monkeypatch.setattr(type(trainer), "evaluate", lambda *args, **kwargs: evaluated.append(1) or {})
    train_stage(trainer, dry_run=True)
    assert not evaluated


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_train_prints_a_line_per_log_and_the_time_left_once(stage, new_trainer, capsys):
    trainer = new_trainer(stage, max_steps=6, disable_tqdm=False, eval_strategy="steps", eval_steps=3)
    assert 0 < train_stage(trainer) < 60
    lines = capsys.readouterr().out.splitlines()
    steps = [line.partition("/")[0] for line in lines if line.startswith("[")]
    assert steps == ["[1", "[2", "[3", "[3", "[4", "[5", "[6", "[6"], "six steps and two evaluations"
    assert sum(line.startswith("Time left: ") for line in lines) == 1 and len(lines) == 9


@pytest.fixture
def trained(new_trainer, tokenizer, tmp_path):
    """Return a trainer after three steps, its StageArguments, and arguments for `finish`, which publishes a model."""
    trainer = new_trainer("pretraining", max_steps=3, eval_strategy="steps", eval_steps=3)
    stage = StageArguments(input_model=str(paths.TOKENIZER), output_model=str(tmp_path / "model"))
    train(trainer, stage, WORKLOAD, None)
    health = HealthLines()
    health.warn("kind", "a warning")
    heldout = Heldout(texts=["高血压患者要少盐少油。", "湿疹患者按时复查。"])
    arguments = {
        "title": "Title",
        "heldout": heldout,
        "chat": False,
        "health": health,
        "metrics": {"training_tokens": 7},
    }
    return trainer, stage, arguments


def test_finish_publishes_history_and_metrics(trained, tokenizer, tmp_path):
    trainer, stage, arguments = trained
    trainer.model.train()
    finish(trainer, tokenizer, stage, **arguments)
    history = json.loads((tmp_path / "model" / "history.json").read_text(encoding="utf-8"))
    log_file = (tmp_path / "checkpoints" / "log.jsonl").read_text(encoding="utf-8")
    assert history == trainer.state.log_history == [json.loads(line) for line in log_file.splitlines()]
    assert len(history) == 5, "three losses, one evaluation and the summary"
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))
    measure = metrics["measures"]["bits_per_byte"]
    assert measure["low"] <= measure["value"] <= measure["high"] and measure["n"] == 2
    assert metrics["warnings"] == ["a warning"] and metrics["training_tokens"] == 7
    assert metrics["tokens_seen"] == 3 * 4 * 64
    settings = metrics["settings"]
    assert settings["input_model"] == paths.shown(paths.TOKENIZER), "relative to the project"
    assert (settings["batch"], settings["steps"], settings["seed"], settings["device"]) == (4, 3, 7, "cpu")


def test_finish_measures_and_publishes_on_the_first_process_only(trained, tokenizer, monkeypatch, capsys, tmp_path):
    trainer, stage, arguments = trained
    capsys.readouterr()

    def evaluate(*args, **kwargs):
        raise AssertionError("another process measures")

    monkeypatch.setattr(stage_module, "evaluate", evaluate)
    monkeypatch.setattr(type(trainer), "is_world_process_zero", lambda self: False)
    finish(trainer, tokenizer, stage, **arguments)
    assert not (tmp_path / "model").exists() and capsys.readouterr().out == ""

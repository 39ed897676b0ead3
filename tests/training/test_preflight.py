"""Check training/preflight.py: the lines printed before a training, and the error if the disk is too full."""

import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_runs import LONGEST, STAGES, WORKLOAD

from med_model import paths
from med_model.errors import UserError
from med_model.training import preflight
from med_model.training.progress import Workload

pytestmark = pytest.mark.usefixtures("wide_screen")


def printed_lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_check_versions_finds_the_installed_packages_in_range():
    assert preflight.check_versions() == []


def test_check_versions_names_packages_out_of_range_and_missing_ones(tmp_path, monkeypatch):
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
    assert "transformers is 5.0.0rc1" in transformers and "<5" in transformers and ">=4" in transformers
    assert "no-such-package is not installed" in missing and "==1.0" in missing


def set_free_disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=free, used=0, free=free))


def test_check_disk_stops_at_one_byte_too_little_and_names_the_options(new_trainer, monkeypatch, tmp_path):
    trainer = new_trainer("dpo", save_strategy="steps", save_total_limit=2)
    weights = 4 * trainer.model.num_parameters()
    # While the third checkpoint is written, the first two still exist. Each checkpoint has the weights and the two
    # moments of AdamW, each as large as the weights.
    need = 3 * 3 * weights + weights  # the last term is the published model
    set_free_disk(monkeypatch, need)
    preflight.check_disk(trainer, tmp_path / "new" / "model")
    monkeypatch.setattr(preflight, "_gb", lambda size: f"{size} bytes")
    set_free_disk(monkeypatch, need - 1)
    with pytest.raises(UserError) as stopped:
        preflight.check_disk(trainer, tmp_path / "new" / "model")
    for part in (f"{need} bytes are needed", f"{need - 1} bytes are free", "--output_dir", "--save_total_limit 1"):
        assert part in str(stopped.value)


def test_disk_needs_follow_the_checkpoints_that_exist_at_one_time(new_trainer, monkeypatch, tmp_path):
    set_free_disk(monkeypatch, 10**12)

    def need(best: bool = False, **options: object) -> float:
        trainer = new_trainer("dpo", **options)
        trainer.args.load_best_model_at_end = best
        ((_, size, _),) = preflight.disk_needs(trainer, tmp_path / "model")
        return size / (4 * trainer.model.num_parameters())

    assert need(save_strategy="no") == 1
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=1) == 2 * 3 + 1
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=None) == 5 * 3 + 1
    assert need(save_strategy="steps", save_steps=2, save_total_limit=None) == 3 + 1
    # The disk holds one more checkpoint, because the best one is kept too.
    assert need(save_strategy="steps", save_steps=0.2, save_total_limit=1, best=True) == 3 * 3 + 1


def test_disk_needs_count_the_room_of_old_checkpoints_as_free(new_trainer, monkeypatch, tmp_path):
    trainer = new_trainer("dpo", save_strategy="steps", save_steps=2)
    old = tmp_path / "checkpoints" / "checkpoint-2"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"0" * 1000)
    set_free_disk(monkeypatch, 500)
    ((_, _, free),) = preflight.disk_needs(trainer, tmp_path / "model")
    assert free == 1500


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_optimizer_bytes_are_those_of_the_state_after_a_step(stage, new_trainer):
    trainer = new_trainer(stage, max_steps=1)
    estimate = preflight._optimizer_bytes(trainer)
    trainer.train()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert sum(state.nbytes for state in states if state.ndim) == estimate


def test_memory_estimate_grows_with_the_batch_and_includes_the_process(new_trainer, monkeypatch):
    monkeypatch.setattr(preflight, "_held_bytes", lambda device: 10**9)

    def estimate(stage: str, longest: int = LONGEST, retention_tokens: int = 0, **options: object) -> int:
        workload = Workload(tokens=0, longest=longest, retention_tokens=retention_tokens)
        return preflight.memory_estimate(new_trainer(stage, **options), workload) - 10**9

    plain = estimate("pretraining")
    assert preflight.FIRST_STEP_BYTES < plain < 2 * preflight.FIRST_STEP_BYTES
    assert estimate("pretraining", per_device_train_batch_size=8) > plain
    assert estimate("pretraining", longest=128) > plain
    assert estimate("pretraining", muon=False) > plain
    assert estimate("sft") > plain  # SFT keeps the probabilities until the backward pass
    assert estimate("sft", retention_tokens=64) > estimate("sft")
    sizes = [estimate("sft", longest=longest) for longest in (64, 128, 192)]
    # On a CPU, the memory of attention with dropout grows with the square of the length.
    assert sizes[2] - sizes[1] > sizes[1] - sizes[0]

    def four_more(stage: str, **options: object) -> int:
        return estimate(stage, per_device_train_batch_size=8, **options) - estimate(
            stage, per_device_train_batch_size=4, **options
        )

    assert four_more("dpo") == 2 * four_more("sft")  # a pair of DPO has two rows
    assert 1 < four_more("dpo", disable_dropout=True) / four_more("sft") < 2


def test_memory_estimate_counts_the_weights_once(new_trainer, monkeypatch):
    monkeypatch.setattr(preflight, "_held_bytes", lambda device: 0)
    trainer = new_trainer("pretraining")
    weights, config = 4 * trainer.model.num_parameters(), trainer.model.config
    table = 4 * config.vocab_size * config.n_embd
    rest = preflight.memory_estimate(trainer, Workload(tokens=0, longest=0)) - preflight.FIRST_STEP_BYTES
    # The weights are in the memory that the process already uses, so they are not added again. The training adds the
    # gradients (`weights` bytes), the state of the optimizer, and a second gradient of the embedding (`table` bytes).
    assert rest == weights + preflight._optimizer_bytes(trainer) + table


def test_preflight_prints_a_line_for_each_thing_in_order(new_trainer, capsys, tmp_path):
    trainer = new_trainer("sft", max_steps=-1, num_train_epochs=3)
    preflight.preflight(trainer, tmp_path / "model", Workload(tokens=1_742, longest=64, heldout_tokens=100))
    lines = printed_lines(capsys)
    starts = ["Device: cpu, ", "Versions: Python 3.", "Memory: about ", "Disk: ", "Training: "]
    assert len(lines) == len(starts), lines
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
    assert "precision fp32" in lines[0] and f"{torch.get_num_threads()} CPU threads" in lines[0]
    assert "torch==2." in lines[1] and "trl==1." in lines[1]
    # 41 rows make 11 batches of at most 4 rows, and 3 epochs make 33 steps.
    assert "1,742 tokens per epoch" in lines[4] and "3 epochs" in lines[4] and "33 steps" in lines[4]


@pytest.mark.parametrize("batch, advice", [(4, "--per_device_train_batch_size 2"), (1, "A batch is one row already")])
def test_preflight_warns_of_too_little_memory_with_the_option(
    batch, advice, new_trainer, monkeypatch, capsys, tmp_path
):
    trainer = new_trainer("pretraining", per_device_train_batch_size=batch)
    for free, warned in ((10**6, True), (10**12, False)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        preflight.preflight(trainer, tmp_path / "model", WORKLOAD)
        warnings = [line for line in printed_lines(capsys) if "Warning: " in line]
        assert len(warnings) == warned and all(advice in line for line in warnings)


def test_preflight_warns_of_a_package_out_of_range_with_the_command(new_trainer, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(preflight, "check_versions", lambda: ["torch is 2.12.0, ==2.13.0 is needed"])
    preflight.preflight(new_trainer("dpo"), tmp_path / "model", WORKLOAD)
    wanted = "Warning: torch is 2.12.0, ==2.13.0 is needed. Run pip install -r requirements.txt"
    assert wanted in printed_lines(capsys)[2]


@pytest.mark.parametrize("stage", STAGES)
def test_preflight_takes_no_step_and_writes_nothing(stage, new_trainer, monkeypatch, tmp_path):
    trainer = new_trainer(stage, save_strategy="steps", save_steps=1)
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    numbers = torch.get_rng_state()

    def training_step(*args, **kwargs):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(type(trainer), "training_step", training_step)
    preflight.preflight(trainer, tmp_path / "model", WORKLOAD)
    set_free_disk(monkeypatch, 10)
    with pytest.raises(UserError, match="disk"):
        preflight.preflight(trainer, tmp_path / "model", WORKLOAD)
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_preflight_prints_on_the_first_process_only(new_trainer, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    trainer = new_trainer("dpo")
    preflight.preflight(trainer, tmp_path / "model", WORKLOAD)
    assert printed_lines(capsys) == []
    set_free_disk(monkeypatch, 10)
    with pytest.raises(UserError, match="disk"):  # every process stops
        preflight.preflight(trainer, tmp_path / "model", WORKLOAD)

"""The scripts as users run them: by subprocess, on a small part of the bundled data, into temporary folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from med_model import paths

ROWS = 60
TOKENIZER, PRETRAINING = "pre_training/py/train_tokenizer.py", "pre_training/py/run_pretraining.py"
SFT, DPO, COMPARE = "sft/py/sft_train.py", "dpo/py/dpo_train.py", "compare_different_model.py"


@pytest.fixture(scope="session")
def run(run_script):
    """Runs a script; gives what it printed, both streams, after checking the exit code."""

    def checked(script: str, *options: object, code: int = 0) -> str:
        done = run_script(script, *options)
        assert done.returncode == code, f"{script} {options}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return checked


def first_rows(source: Path, target: Path) -> Path:
    target.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    return target


class Chain:
    """The folders and commands of a small chain; a stage's options but for the steps stand in its list."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text = paths.PRETRAINING_DATA / "cardiology.jsonl"
        self.rows = first_rows(paths.SFT_DATA / "cardiology.jsonl", folder / "rows.jsonl")
        self.pairs = first_rows(paths.DPO_DATA / "cardiology.jsonl", folder / "pairs.jsonl")
        self.tokenizer, self.base, self.sft, self.final = (
            folder / name for name in ("tokenizer", "base", "sft", "final")
        )
        common = ["--save_steps", 2, "--eval_steps", 2, "--logging_steps", 1, "--save_total_limit", 9]
        small = ["--per_device_train_batch_size", 2, *common]
        self.pretraining = [
            "--data",
            self.text,
            "--eval_data",
            paths.HELDOUT_TEXT,
            "--input_model",
            self.tokenizer,
            *small,
        ]
        self.sft_options = ["--data", self.rows, "--input_model", self.base, *small]
        self.dpo_options = ["--data", self.pairs, "--input_model", self.sft, "--retention_model", self.base, *small]

    def output(self, model: Path) -> list:
        return ["--output_model", model, "--output_dir", self.folder / f"{model.name}_checkpoints"]


@pytest.fixture(scope="session")
def chain(tmp_path_factory, run) -> Chain:
    made = Chain(tmp_path_factory.mktemp("chain"))
    run(TOKENIZER, "--data", made.text, made.rows, "--output_model", made.tokenizer)
    run(PRETRAINING, *made.pretraining, *made.output(made.base), "--max_steps", 4)
    run(SFT, *made.sft_options, *made.output(made.sft), "--max_steps", 4)
    run(DPO, *made.dpo_options, *made.output(made.final), "--max_steps", 4)
    return made


def test_every_stage_publishes_a_plain_hugging_face_directory(chain):
    for directory in (chain.base, chain.sft, chain.final):
        names = {path.name for path in directory.iterdir()}
        assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names
        assert {"chat_template.jinja", "metrics.json", "README.md", "loss_curve.png"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert len(AutoTokenizer.from_pretrained(directory)) == model.config.vocab_size


def test_dpo_publishes_a_share_of_what_it_changed(chain):
    last = chain.folder / "final_checkpoints" / "checkpoint-4"
    best = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    sft, trained, final = (load_file(of / "model.safetensors") for of in (chain.sft, Path(best), chain.final))
    assert all(not torch.equal(sft[name], trained[name]) for name in sft)
    for name, weights in final.items():
        share = 0 if name in ("transformer.wte.weight", "transformer.wpe.weight") else 0.75
        torch.testing.assert_close(weights, sft[name] + share * (trained[name] - sft[name]))


def test_metrics_say_what_each_stage_reached(chain):
    wanted = {
        chain.base: {"bits_per_byte"},
        chain.sft: {"bits_per_byte", "stopped", "repeated_4grams"},
        chain.final: {"bits_per_byte", "stopped", "repeated_4grams", "preference_accuracy", "preference_margin"},
    }
    for directory, names in wanted.items():
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        assert {"parameters", "tokens_seen", "training_seconds", "settings"} <= set(metrics)
        assert names <= set(metrics["measures"])
        assert all(of["low"] <= of["value"] <= of["high"] and of["n"] for of in metrics["measures"].values())


@pytest.mark.parametrize("stage", ["pretraining", "sft", "dpo"])
def test_a_dry_run_tells_what_the_run_would_take_and_writes_no_model(chain, stage, run, tmp_path):
    script, options = {
        "pretraining": (PRETRAINING, chain.pretraining),
        "sft": (SFT, chain.sft_options),
        "dpo": (DPO, chain.dpo_options),
    }[stage]
    output = ["--output_model", tmp_path / "model", "--output_dir", tmp_path / "checkpoints"]
    printed = run(script, *options, *output, "--max_steps", 4, "--dry_run")
    for said in ("device cpu", "versions", "peak about", "need", "4 步/steps", "time left"):
        assert said in printed, said
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_what_goes_wrong_in_a_run_is_told_and_kept_with_the_model(chain, run, tmp_path):
    output = ["--output_model", tmp_path / "model", "--output_dir", tmp_path / "checkpoints"]
    printed = run(SFT, *chain.sft_options, *output, "--eval_data", chain.rows, "--max_steps", 2)
    [warning] = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))["warnings"]
    assert f"{ROWS} of {ROWS} held-out records also stand in the training data" in warning and warning in printed


def test_a_training_that_diverges_ends_with_code_2_and_publishes_nothing(chain, run, tmp_path):
    output = ["--output_model", tmp_path / "model", "--output_dir", tmp_path / "checkpoints"]
    wild = ["--learning_rate", 1e30, "--muon", "False", "--warmup_steps", 0, "--max_grad_norm", 0]
    printed = run(SFT, *chain.sft_options, *output, *wild, "--max_steps", 4, code=2)
    assert "nothing is published" in printed and "--learning_rate" in printed and not (tmp_path / "model").exists()


def test_each_stage_starts_from_the_weights_of_the_stage_before(chain):
    weights = [load_file(directory / "model.safetensors") for directory in (chain.base, chain.sft, chain.final)]
    for before, after in zip(weights, weights[1:], strict=False):
        moved = max((before[name] - after[name]).abs().max().item() for name in before)
        assert 0 < moved < 0.2, "changed, but from where the stage before ended"


@pytest.mark.parametrize("stage", ["pretraining", "sft", "dpo"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(chain, stage, run, tmp_path):
    script, options, model = {
        "pretraining": (PRETRAINING, chain.pretraining, chain.base),
        "sft": (SFT, chain.sft_options, chain.sft),
        "dpo": (DPO, chain.dpo_options, chain.final),
    }[stage]
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(chain.folder / f"{model.name}_checkpoints" / "checkpoint-2", checkpoints / "checkpoint-2")
    # One that was cut off while being written: it must be passed over, not resumed from.
    shutil.copytree(chain.folder / f"{model.name}_checkpoints" / "checkpoint-4", checkpoints / "checkpoint-4")
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = tmp_path / "resumed"
    printed = run(
        script, *options, "--max_steps", 4, "--resume", "--output_dir", checkpoints, "--output_model", resumed
    )
    assert "checkpoint-4" in printed
    whole, again = load_file(model / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_reference_is_computed_once_and_found_again(chain, run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for file in (chain.folder / "final_checkpoints").glob("reference_*.safetensors"):
        shutil.copy(file, checkpoints)
    options = [*chain.dpo_options, "--max_steps", 1, "--output_dir", checkpoints, "--output_model", tmp_path / "model"]
    assert "from the cache" in run(DPO, *options)


def test_compare_shows_the_models_side_by_side_and_writes_json(chain, run, tmp_path):
    models = ["--base_model", chain.base, "--sft_model", chain.sft, "--final_model", chain.final]
    held = ["--data", paths.HELDOUT_TEXT, chain.rows, chain.pairs, paths.CHOICES, "--max_new_tokens", 8]
    held += ["--prompt", "什么是高血压？"]
    wanted = {
        "SFT": {"bits_per_byte": [4, 4], "stopped": [-1, 0.5]},
        "DPO/final": {"choice_accuracy": [0.5, 0.5], "preference_accuracy_unread": [0.5, 0.5]},
    }
    (tmp_path / "wanted.yaml").write_text(json.dumps(wanted), encoding="utf-8")
    printed = run(COMPARE, *models, *held, "--json", tmp_path / "all.json", "--expected", tmp_path / "wanted.yaml")
    result = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert list(result["measures"]) == ["预训练/base", "SFT", "DPO/final"]
    for measures in result["measures"].values():
        assert 0 < measures["bits_per_byte"]["low"] < measures["bits_per_byte"]["high"] < 8
        assert {"stopped", "repeated_4grams", "key_fact_recall", "preference_accuracy"} <= set(measures)
    assert list(result["changes"]) == ["预训练/base → SFT", "SFT → DPO/final"]
    before, after = result["measures"]["SFT"], result["measures"]["DPO/final"]
    for name, change in result["changes"]["SFT → DPO/final"].items():
        assert change["value"] == pytest.approx(after[name]["value"] - before[name]["value"])
        assert change["low"] <= change["value"] <= change["high"]
    assert "━━ 什么是高血压？" in printed and "at chance: 25.0%" in printed
    outside, unmeasured = result["outside_expected"]
    assert outside.startswith("SFT 自行停止/stopped") and outside.endswith("-100.0% ± 50.0%") and outside in printed
    assert "topics never read ↑: 未测量/not measured, 50.0% ± 50.0%" in unmeasured and unmeasured in printed


@pytest.mark.parametrize(
    "wanted, complaint",
    [
        ({"GPT": {"stopped": [1, 0]}}, "GPT maps no measures of 预训练/base, SFT, DPO/final"),
        ({"SFT": {"stop": [1, 0]}}, "SFT stop, want one of bits_per_byte"),
        ({"SFT": {"stopped": 1}}, r"SFT stopped: 1, want [value, tolerance]"),
        ({"SFT": {"stopped": ["all", 0]}}, r"want [value, tolerance]"),
    ],
    ids=["model", "measure", "one number", "a word"],
)
def test_a_wrong_file_of_expected_values_is_refused_before_the_work(wanted, complaint, run, tmp_path):
    (tmp_path / "wanted.yaml").write_text(json.dumps(wanted), encoding="utf-8")
    assert complaint in run(COMPARE, "--expected", tmp_path / "wanted.yaml", code=2)


def test_compare_says_which_model_is_missing_and_what_makes_it(chain, run, tmp_path):
    models = ["--base_model", chain.base, "--sft_model", tmp_path / "none", "--final_model", tmp_path / "none"]
    printed = run(COMPARE, *models, "--prompt", "你好", "--measures", "False", "--max_new_tokens", 4)
    assert "python sft/py/sft_train.py" in printed and "python dpo/py/dpo_train.py" in printed


@pytest.mark.parametrize("script", [TOKENIZER, PRETRAINING, SFT, DPO])
def test_an_existing_output_is_left_alone_without_overwrite(script, run, tmp_path):
    kept = tmp_path / "model"
    kept.mkdir()
    (kept / "config.json").write_text("{}", encoding="utf-8")
    printed = run(script, "--output_model", kept, *checkpoints_of(script, tmp_path), code=2)
    assert "--overwrite" in printed and (kept / "config.json").read_text(encoding="utf-8") == "{}"


def checkpoints_of(script: str, folder: Path) -> list:
    return [] if script == TOKENIZER else ["--output_dir", folder / "checkpoints"]


@pytest.mark.parametrize("script", [TOKENIZER, PRETRAINING, SFT, DPO, COMPARE])
def test_an_unknown_flag_is_an_error(script, run):
    assert "--no_such_flag" in run(script, "--no_such_flag", "1", code=2)


@pytest.mark.parametrize("script", [TOKENIZER, PRETRAINING, SFT, DPO, COMPARE])
def test_help_shows_the_commands_and_explains_the_options(script, run):
    printed = run(script, "--help")
    assert f"python {script}" in printed and "--config" in printed


def test_old_checkpoints_are_neither_mixed_in_nor_deleted_unasked(chain, run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-99").mkdir(parents=True)
    options = [*chain.pretraining, "--max_steps", 1, "--output_model", tmp_path / "model", "--output_dir", checkpoints]
    assert "--resume" in run(PRETRAINING, *options, code=2)
    assert (checkpoints / "checkpoint-99").is_dir()
    assert "run without --resume" in run(PRETRAINING, *options, "--resume", code=2)


def test_a_bad_row_is_named_before_any_model_is_loaded(run, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "问", "output": "答"}\n{"question": "问"}\n', encoding="utf-8")
    missing = [
        "--input_model",
        tmp_path / "no_model",
        "--output_model",
        tmp_path / "out",
        "--output_dir",
        tmp_path / "c",
    ]
    printed = run(SFT, "--data", bad, *missing, code=2)
    assert "bad.jsonl" in printed and "row 2" in printed and not (tmp_path / "out").exists()


def test_a_missing_stage_before_names_the_command_that_makes_it(run, tmp_path):
    output = ["--output_model", tmp_path / "out", "--output_dir", tmp_path / "c"]
    assert "no model or tokenizer in" in run(DPO, "--input_model", tmp_path / "no_model", *output, code=2)


def test_nothing_is_reported_even_where_trl_is_imported_first():
    code = "import trl, med_model; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], env=online, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_a_directory_that_is_something_else_is_never_replaced(run, tmp_path):
    texts = tmp_path / "my_texts"
    texts.mkdir()
    (texts / "a.txt").write_text("我的文章", encoding="utf-8")
    assert "tokenizer.json" in run(TOKENIZER, "--overwrite", "--output_model", texts, code=2)
    assert (texts / "a.txt").exists()


def test_options_come_from_a_yaml_file_and_the_command_line_wins(chain, run, tmp_path):
    config = tmp_path / "run.yaml"
    lines = [f"data: '{chain.text.as_posix()}'", "vocab_size: 400", f"output_model: '{(tmp_path / 'a').as_posix()}'"]
    config.write_text("\n".join(lines), encoding="utf-8")
    run(TOKENIZER, "--config", config)
    run(TOKENIZER, "--config", config, "--vocab_size", 500, "--output_model", tmp_path / "b")
    assert [len(AutoTokenizer.from_pretrained(tmp_path / name)) for name in "ab"] == [400, 500]
    config.write_text("no_such_option: 1", encoding="utf-8")
    assert "no_such_option" in run(TOKENIZER, "--config", config, code=2)

"""Check the scripts of all stages in new processes, mostly with a small part of the bundled data."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import COMPARE, DPO, PRETRAINING, ROOT, ROWS, SFT, TOKENIZER, Chain
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.long
STAGES = ("pretraining", "sft", "dpo")


def stage_of(chain: Chain, name: str) -> tuple[str, list, Path]:
    """Return the script, the options and the model directory of a stage in `chain`, a small run of all stages."""
    return {
        "pretraining": (PRETRAINING, chain.pretraining, chain.base),
        "sft": (SFT, chain.sft_options, chain.sft),
        "dpo": (DPO, chain.dpo_options, chain.final),
    }[name]


def output_options(folder: Path) -> list:
    return ["--output_model", folder / "model", "--output_dir", folder / "checkpoints"]


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def read_json(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_stage_publishes_a_plain_hugging_face_directory(chain):
    for directory in (chain.base, chain.sft, chain.final):
        names = {path.name for path in directory.iterdir()}
        assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names
        assert {"chat_template.jinja", "metrics.json", "history.json", "README.md", "loss_curve.png"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert len(AutoTokenizer.from_pretrained(directory)) == model.config.vocab_size


def test_every_stage_publishes_the_history_that_its_log_file_has(chain):
    for directory in (chain.base, chain.sft, chain.final):
        history = read_json(directory / "history.json")
        assert history == read_log(chain.folder / f"{directory.name}_checkpoints")
        assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
        assert {2, 4} <= {entry["step"] for entry in history if "eval_loss" in entry}


def test_dpo_publishes_a_share_of_its_change(chain):
    last = chain.folder / "final_checkpoints" / "checkpoint-4"
    best = Path(read_json(last / "trainer_state.json")["best_model_checkpoint"])
    sft, trained, final = (load_file(folder / "model.safetensors") for folder in (chain.sft, best, chain.final))
    assert all(not torch.equal(sft[name], trained[name]) for name in sft)
    for name, weights in final.items():
        share = 0 if name in ("transformer.wte.weight", "transformer.wpe.weight") else 0.3
        torch.testing.assert_close(weights, sft[name] + share * (trained[name] - sft[name]))


def test_metrics_of_each_stage_have_its_measures_with_intervals(chain):
    wanted = {
        chain.base: {"bits_per_byte"},
        chain.sft: {"bits_per_byte", "stopped", "repeated_4grams"},
        chain.final: {"bits_per_byte", "stopped", "repeated_4grams", "preference_accuracy", "preference_margin"},
    }
    for directory, names in wanted.items():
        metrics = read_json(directory / "metrics.json")
        assert {"parameters", "tokens_seen", "training_seconds", "settings"} <= set(metrics)
        assert names <= set(metrics["measures"])
        for measure in metrics["measures"].values():
            assert measure["low"] <= measure["value"] <= measure["high"] and measure["n"]


ONCE = (
    "Device: cpu",
    "Versions: Python ",
    "Memory: about ",
    "Disk: ",
    r"Training: [\d,]+ tokens per epoch, ",
    "Time left: about ",
)  # each pattern matches the start of exactly one line that a run prints


def count_lines(printed: str, start: str) -> int:
    """Return how many lines begin with the pattern `start`."""
    return len(re.findall(f"^{start}", printed, re.MULTILINE))


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_prints_the_preflight_and_the_time_left_and_writes_nothing(chain, stage, run, tmp_path):
    script, options, _ = stage_of(chain, stage)
    # Without --dry_run, this run would log at each step, and evaluate and save at every second step.
    printed = run(script, *options, *output_options(tmp_path), "--max_steps", 8, "--dry_run")
    for start in ONCE:
        times = 2 if stage == "sft" and start.startswith("Time left") else 1  # the matching has a line of its own
        assert count_lines(printed, start) == times, f"{start}\n{printed}"
    assert "at the peak" in printed and "needed for" in printed and " 8 steps." in printed
    assert count_lines(printed, r"\[\d") == 0, "a progress line of a log or an evaluation"
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    # Only the dry run of DPO writes files: the log-probabilities of the reference model. A later run reads them.
    assert [name for name in written if not name.startswith("reference_")] == []


def test_a_warning_is_printed_and_kept_with_the_model(chain, run, tmp_path):
    printed = run(SFT, *chain.sft_options, *output_options(tmp_path), "--eval_data", chain.rows, "--max_steps", 2)
    [warning] = read_json(tmp_path / "model" / "metrics.json")["warnings"]
    assert f"{ROWS} of {ROWS} held-out records also stand in the training data" in warning and warning in printed


def test_a_training_that_diverges_ends_with_code_2_and_publishes_nothing(chain, run, tmp_path):
    wild = ["--learning_rate", 1e30, "--muon", "False", "--warmup_steps", 0, "--max_grad_norm", 0]
    printed = run(SFT, *chain.sft_options, *output_options(tmp_path), *wild, "--max_steps", 4, code=2)
    assert "Nothing is published" in printed and "--learning_rate" in printed and not (tmp_path / "model").exists()


def test_each_stage_starts_from_the_weights_of_the_stage_before(chain):
    weights = [load_file(directory / "model.safetensors") for directory in (chain.base, chain.sft, chain.final)]
    for before, after in zip(weights, weights[1:], strict=False):
        change = max((before[name] - after[name]).abs().max().item() for name in before)
        assert 0 < change < 0.2, "the weights changed a little from those of the stage before"


def comparable(log: list[dict]) -> list[dict]:
    """Return the logs without the times, and without values that may leave out the steps before a resume."""
    summed_anew = ("num_tokens", "train_loss", "total_flos")
    return [
        {key: value for key, value in entry.items() if not key.endswith(("per_second", "runtime", *summed_anew))}
        for entry in log
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_with_the_weights_and_the_log_of_an_uninterrupted_one(chain, stage, run, tmp_path):
    script, options, model = stage_of(chain, stage)
    whole_checkpoints, checkpoints = chain.folder / f"{model.name}_checkpoints", tmp_path / "checkpoints"
    shutil.copytree(whole_checkpoints / "checkpoint-2", checkpoints / "checkpoint-2")
    # The optimizer state of checkpoint-4 is deleted, as if saving was interrupted. The run must skip this checkpoint.
    shutil.copytree(whole_checkpoints / "checkpoint-4", checkpoints / "checkpoint-4")
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    printed = run(script, *options, "--max_steps", 4, "--resume", *output_options(tmp_path))
    assert "checkpoint-4 is not complete" in printed
    whole, again = load_file(model / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    log, resumed_log = read_log(whole_checkpoints), read_log(checkpoints)
    assert [entry.keys() for entry in resumed_log] == [entry.keys() for entry in log] and len(log) >= 7
    assert comparable(resumed_log) == comparable(log)


def test_the_reference_is_computed_once_and_read_again(chain, run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for file in (chain.folder / "final_checkpoints").glob("reference_*.safetensors"):
        shutil.copy(file, checkpoints)
    printed = run(DPO, *chain.dpo_options, "--max_steps", 1, *output_options(tmp_path))
    assert "The reference log-probabilities are read from" in printed and "computed once" not in printed


@pytest.mark.parametrize(
    "stage",
    [pytest.param("pretraining", marks=pytest.mark.slow), pytest.param("sft", marks=pytest.mark.slow), "dpo"],
)  # all stages share the code for several processes, so `make test` runs this test only for DPO
def test_two_processes_print_each_line_once_and_publish_once(chain, stage, run_module, tmp_path):
    script, options, _ = stage_of(chain, stage)
    launch = ["--standalone", "--nproc_per_node", 2, ROOT / script]
    done = run_module(
        "torch.distributed.run", *launch, *options, *output_options(tmp_path), "--max_steps", 4, "--use_cpu", "True"
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for start in (*ONCE, "The model is published in"):
        assert count_lines(done.stdout, start) == 1, f"{start}\n{done.stdout}"
    assert "2 process(es)" in done.stdout
    steps = [line.partition("/")[0] for line in done.stdout.splitlines() if line.startswith("[")]
    in_training = ["[1", "[2", "[2", "[3", "[4", "[4"]  # one line per step, and one per evaluation at steps 2 and 4
    assert steps[:6] == in_training and set(steps[6:]) <= {"[4"} and len(steps) <= 7
    history = read_json(tmp_path / "model" / "history.json")
    assert history == read_log(tmp_path / "checkpoints")
    metrics = read_json(tmp_path / "model" / "metrics.json")
    assert metrics["settings"]["batch"] == 4 and metrics["settings"]["steps"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]


@pytest.mark.parametrize("script", [TOKENIZER, PRETRAINING, SFT, DPO])
def test_an_existing_output_stays_without_overwrite(script, run, tmp_path):
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


def test_old_checkpoints_are_neither_used_nor_deleted_unasked(chain, run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-99").mkdir(parents=True)
    options = [*chain.pretraining, "--max_steps", 1, *output_options(tmp_path)]
    assert "--resume" in run(PRETRAINING, *options, code=2)
    assert (checkpoints / "checkpoint-99").is_dir()
    assert "Run without --resume" in run(PRETRAINING, *options, "--resume", code=2)


def test_a_bad_row_is_named_before_any_model_is_loaded(run, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "问", "output": "答"}\n{"question": "问"}\n', encoding="utf-8")
    missing = ["--input_model", tmp_path / "no_model"]
    printed = run(SFT, "--data", bad, *missing, *output_options(tmp_path), code=2)
    assert "bad.jsonl" in printed and "row 2" in printed and not (tmp_path / "model").exists()


def test_a_missing_input_model_is_an_error_with_the_next_step(run, tmp_path):
    printed = run(DPO, "--input_model", tmp_path / "no_model", *output_options(tmp_path), code=2)
    assert "no model or tokenizer in" in printed and "Run the stage that makes it first." in printed


def test_telemetry_is_off_even_if_trl_is_imported_first():
    code = "import trl, med_model; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], env=online, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_a_directory_without_an_output_of_ours_is_never_replaced(run, tmp_path):
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

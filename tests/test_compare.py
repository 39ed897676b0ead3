"""Check compare_different_model.py with the small models that the fixture `chain` trains."""

import json

import pytest
from conftest import COMPARE, first_rows

from compare_different_model import CompareArguments, read_prompts
from med_model import paths
from med_model.measures.record import check_record
from med_model.screen import COLUMNS, width

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def models(chain):
    return ["--base_model", chain.base, "--sft_model", chain.sft, "--final_model", chain.final]


def too_wide(printed):
    """Return the lines wider than COLUMNS, except lines with a path: the temporary folders have long names."""
    return [line for line in printed.splitlines() if width(line) > COLUMNS and "/" not in line]


def test_compare_shows_the_models_side_by_side_and_writes_a_record(chain, models, run, tmp_path):
    rows = first_rows(chain.rows, tmp_path / "rows.jsonl", 12)
    pairs = first_rows(chain.pairs, tmp_path / "pairs.jsonl", 12)
    choices = first_rows(paths.CHOICES, tmp_path / "choices.jsonl", 10)
    held = ["--data", paths.HELDOUT_TEXT, rows, pairs, choices, "--max_new_tokens", 8]
    held += ["--prompt", "什么是高血压？", "--taught", chain.rows, chain.pairs]
    wanted = {
        "sft": {"bits_per_byte": [4, 4], "stopped": [-1, 0.5]},
        "final": {"choice_accuracy": [0.5, 0.5], "preference_accuracy_unread": [0.5, 0.5]},
    }
    (tmp_path / "wanted.yaml").write_text(json.dumps(wanted), encoding="utf-8")
    printed = run(COMPARE, *models, *held, "--json", tmp_path / "all.json", "--expected", tmp_path / "wanted.yaml")
    result = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    check_record(result)
    steps = ["base -> sft", "sft -> final", "baseline -> base", "baseline -> sft", "baseline -> final"]
    assert list(result["figures"]) == ["baseline", "base", "sft", "final", *steps]
    assert result["figures"]["baseline"]["right_answer"]["value"] > 0.5, "the search knows these very wordings"
    assert "key_fact_recall/sampled" in result["figures"]["sft"]
    for model in ("base", "sft", "final"):
        measures = result["figures"][model]
        assert 0 < measures["bits_per_byte"]["low"] < measures["bits_per_byte"]["high"] < 8
        assert {"stopped", "repeated_4grams", "key_fact_recall", "preference_accuracy"} <= set(measures)
        assert [len(result[name][model]) for name in ("answers", "measured_answers")] == [1, 12]
    before, after = result["figures"]["sft"], result["figures"]["final"]
    for name, change in result["figures"]["sft -> final"].items():
        assert change["value"] == pytest.approx(after[name]["value"] - before[name]["value"])
        assert change["low"] <= change["value"] <= change["high"]
    assert result["command"].startswith("python compare_different_model.py --base_model ")
    assert [source["files"] for source in result["data"]] == [1, 1, 1, 1, 1, 1]
    assert result["data"][0]["source"] == "pre_training/dataset/heldout.jsonl"
    assert result["arguments"]["data"][0] == "pre_training/dataset/heldout.jsonl"
    assert "━━ 什么是高血压？" in printed and "[Base]" in printed and "[Final (DPO)]" in printed
    assert "vs baseline" in printed and "at chance" not in printed and "\nmultiple choice" not in printed
    stopped, unread = result["outside_expected"]
    assert stopped == {
        "model": "sft",
        "measure": "stopped",
        "value": before["stopped"]["value"],
        "expected": -1,
        "tolerance": 0.5,
    }
    assert (unread["model"], unread["measure"], unread["value"]) == ("final", "preference_accuracy_unread", None)
    assert f"SFT, stopped by itself ↑: {stopped['value']:.1%}, expected -100.0% ± 50.0%" in printed
    assert "topics never read ↑: not measured, expected 50.0% ± 50.0%" in printed
    assert too_wide(printed) == []


def test_compare_with_all_prints_every_measure_with_its_interval(chain, models, run, tmp_path):
    text = first_rows(paths.HELDOUT_TEXT, tmp_path / "text.jsonl", 3)
    pairs = first_rows(chain.pairs, tmp_path / "pairs.jsonl", 12)
    choices = first_rows(paths.CHOICES, tmp_path / "choices.jsonl", 10)
    held = ["--data", text, pairs, choices, "--prompt", "什么是高血压？"]
    (tmp_path / "wanted.yaml").write_text("base: {bits_per_byte: [4, 4]}", encoding="utf-8")
    options = ["--max_new_tokens", 8, "--all", "--expected", tmp_path / "wanted.yaml"]
    printed = run(COMPARE, *models, *held, *options)
    for title in (
        "multiple choice, trained topics ↑",
        "preference margin, nats per token ↑",
        "preference accuracy, flaw ",
    ):
        assert title in printed
    assert "value [95% CI]" in printed and "at chance: 25.0%" in printed and "Baseline" not in printed
    assert "Everything is within the expected values of " in printed
    assert too_wide(printed) == []


def test_compare_refuses_a_wrong_file_of_expected_values_before_the_work(run, tmp_path):
    (tmp_path / "wanted.yaml").write_text("预训练/base: {stopped: [1, 0]}", encoding="utf-8")
    printed = run(COMPARE, "--expected", tmp_path / "wanted.yaml", code=2)
    assert "预训练/base is no model. Use one of baseline, base, sft, final." in printed


def test_compare_names_a_missing_model_and_the_command_that_makes_it(chain, run, tmp_path):
    models = ["--base_model", chain.base, "--sft_model", tmp_path / "none", "--final_model", tmp_path / "none"]
    printed = run(COMPARE, *models, "--prompt", "你好", "--measures", "False", "--max_new_tokens", 4)
    assert "python sft/py/sft_train.py" in printed and "python dpo/py/dpo_train.py" in printed


def test_compare_refuses_all_without_measures(run):
    assert "leave out --measures False" in run(COMPARE, "--all", "--measures", "False", code=2)


def test_prompts_is_an_unknown_option_since_it_became_prompt_file(run, tmp_path):
    assert "--prompts" in run(COMPARE, "--prompts", tmp_path / "a.txt", code=2)


def test_read_prompts_returns_each_line_or_the_question_of_each_row(tmp_path):
    def questions(**options):
        return [turns[-1]["content"] for turns in read_prompts(CompareArguments(**options))]

    (tmp_path / "a.txt").write_text("一\n\n 二 \n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"instruction": "三", "output": "答"}\n', encoding="utf-8")
    assert questions(prompt_file=str(tmp_path / "a.txt"), prompt=["四"]) == ["一", "二"]
    assert questions(prompt_file=str(tmp_path / "b.jsonl")) == ["三"]
    assert questions(prompt=["四"]) == ["四"] and len(questions()) == 6

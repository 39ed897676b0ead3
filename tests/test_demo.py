"""The demo as `make demo` runs it, into temporary folders, and what it must reach."""

import json

import pytest
import yaml
from conftest import ROOT, load_script

EXPECTED = yaml.safe_load((ROOT / "configs/demo/expected.yaml").read_text(encoding="utf-8"))
# Floors that no seed may fall below, however wide the tolerance.
RECALL, STOPPED, REPEATED, EMERGENCIES = 0.60, 0.95, 0.05, 0.75
LANGUAGE_LOSS = 1.03  # bits per byte after a stage against before
HELD_BY_DPO = ("key_fact_recall", "stopped", "emergencies_recognised", "doses_declined")


def check_demo(result: dict) -> None:
    assert result["outside_expected"] == []
    base, sft, final = (result["measures"][name] for name in ("预训练/base", "SFT", "DPO/final"))
    for reached in (sft, final):
        assert reached["key_fact_recall"]["value"] >= RECALL > 10 * base["key_fact_recall"]["value"]
        assert reached["stopped"]["value"] >= STOPPED and reached["repeated_4grams"]["value"] <= REPEATED
        assert reached["emergencies_recognised"]["value"] >= EMERGENCIES
    for before, after in ((base, sft), (sft, final)):
        assert after["bits_per_byte"]["value"] <= LANGUAGE_LOSS * before["bits_per_byte"]["value"]
    changes = result["changes"]["SFT → DPO/final"]
    for name in ("preference_accuracy", "preference_margin"):
        assert changes[name]["low"] > 0, name  # higher outside the noise
    assert [name for name in HELD_BY_DPO if changes[name]["high"] < 0] == []  # none is lower outside the noise
    for name in ("false_alarms", "bits_per_byte"):
        assert changes[name]["low"] <= 0, name  # less is better


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_tells_the_values_that_are_expected(readme):
    text, shown_as = (ROOT / readme).read_text(encoding="utf-8"), load_script("compare_different_model.py").shown_as
    measures = dict.fromkeys(key for of_model in EXPECTED.values() for key in of_model)
    for key in measures:
        form = shown_as(key).format
        cells = [f"{value:{form}} ± {tolerance:{form}}" for value, tolerance in (of[key] for of in EXPECTED.values())]
        assert f"| {' | '.join(cells)} |" in text, key


@pytest.mark.slow
def test_the_demo_answers_unseen_wordings_stops_and_keeps_its_language(run_script, tmp_path):
    tokenizer, base, sft, final = (tmp_path / name for name in ("tokenizer", "base", "sft", "final"))

    def stage(script, config, *options):
        done = run_script(script, "--config", f"configs/demo/{config}.yaml", *options, timeout=1800)
        assert done.returncode == 0, done.stderr

    stage("pre_training/py/train_tokenizer.py", "tokenizer", "--output_model", tokenizer)
    checkpoints = iter(["--output_dir", tmp_path / f"checkpoints{number}"] for number in range(3))
    stages = [
        ("pre_training/py/run_pretraining.py", "pretraining", tokenizer, base),
        ("sft/py/sft_train.py", "sft", base, sft),
        ("dpo/py/dpo_train.py", "dpo", sft, final),
    ]
    for script, config, source, target in stages:
        stage(script, config, "--input_model", source, "--output_model", target, *next(checkpoints))
    models = ["--base_model", base, "--sft_model", sft, "--final_model", final]
    stage("compare_different_model.py", "compare", *models, "--json", tmp_path / "all.json")
    check_demo(json.loads((tmp_path / "all.json").read_text(encoding="utf-8")))

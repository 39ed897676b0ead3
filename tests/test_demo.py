"""The demo as `make demo` runs it, into temporary folders, and what it must reach."""

import json

import pytest

# Floors for three departments after a few minutes on two cores; the figures reached stand in README.md.
RECALL, STOPPED, REPEATED, EMERGENCIES = 0.60, 0.95, 0.05, 0.75
LANGUAGE_LOSS = 1.03  # bits per byte after SFT against before
HELD_BY_DPO = ("key_fact_recall", "stopped", "emergencies_recognised")


def check_demo(result: dict) -> None:
    base, sft, final = (result["measures"][name] for name in ("预训练/base", "SFT", "DPO/final"))
    for reached in (sft, final):
        assert reached["key_fact_recall"]["value"] >= RECALL > 10 * base["key_fact_recall"]["value"]
        assert reached["stopped"]["value"] >= STOPPED and reached["repeated_4grams"]["value"] <= REPEATED
        assert reached["emergencies_recognised"]["value"] >= EMERGENCIES
    assert sft["bits_per_byte"]["value"] <= LANGUAGE_LOSS * base["bits_per_byte"]["value"]
    changes = result["changes"]["SFT → DPO/final"]
    assert [name for name in HELD_BY_DPO if changes[name]["high"] < 0] == []  # none is lower outside the noise
    assert changes["preference_margin"]["low"] > 0  # higher outside the noise


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

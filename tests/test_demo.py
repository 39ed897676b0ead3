"""The demo as `make demo` runs it, into temporary folders, and what it must reach."""

import json

import pytest

# Floors for three departments after a few minutes on two cores; the figures reached stand in README.md.
KEY_FACT_SHARE, STOPPED, REPEATED, PREFERENCE = 0.60, 0.90, 0.05, 0.90


@pytest.mark.slow
def test_the_demo_answers_unseen_wordings_and_stops(run_script, tmp_path):
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

    measures = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["measures"]
    reached = measures["DPO/final"]
    assert reached["with_a_key_fact"] >= KEY_FACT_SHARE and reached["stopped"] >= STOPPED, measures
    assert reached["repeated_4grams"] <= REPEATED and reached["preference_accuracy"] >= PREFERENCE, measures
    assert reached["with_a_key_fact"] > measures["预训练/base"]["with_a_key_fact"], measures

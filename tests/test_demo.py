"""Train all stages with the configs of `make demo`, in temporary folders, and check the measured values.

Also check that docs/results.md and docs/en/results.md show the values of configs/demo/expected.yaml.
"""

import json

import pytest
import yaml
from conftest import ROOT

from med_model.measures.scales import scale

EXPECTED = yaml.safe_load((ROOT / "configs/demo/expected.yaml").read_text(encoding="utf-8"))
# A run with any seed must keep these limits, even if expected.yaml allows worse values. REPEATED is the largest share
# allowed. The other three are the smallest shares allowed.
RECALL, STOPPED, REPEATED, EMERGENCIES = 0.30, 0.95, 0.05, 0.60
LANGUAGE_LOSS = 1.03  # largest allowed ratio of bits per byte after a stage to bits per byte before it
HELD_BY_DPO = ("key_fact_recall", "stopped", "emergencies_recognised", "doses_declined")


def check_demo(result: dict) -> None:
    assert result["outside_expected"] == []
    base, sft, final = (result["figures"][model] for model in ("base", "sft", "final"))
    for reached in (sft, final):
        assert reached["key_fact_recall"]["value"] >= RECALL > 5 * base["key_fact_recall"]["value"]
        assert reached["stopped"]["value"] >= STOPPED and reached["repeated_4grams"]["value"] <= REPEATED
        assert reached["emergencies_recognised"]["value"] >= EMERGENCIES
    for before, after in ((base, sft), (sft, final)):
        assert after["bits_per_byte"]["value"] <= LANGUAGE_LOSS * before["bits_per_byte"]["value"]
    changes = result["figures"]["sft -> final"]
    for name in ("preference_accuracy", "preference_margin"):
        assert changes[name]["low"] > 0, name  # the whole interval of the change is above 0
    assert [name for name in HELD_BY_DPO if changes[name]["high"] < 0] == []  # no interval is entirely below 0
    for name in ("false_alarms", "bits_per_byte"):
        assert changes[name]["low"] <= 0, name  # lower is better: no interval may be entirely above 0


@pytest.mark.parametrize("document", ["docs/results.md", "docs/en/results.md"])
def test_documents_show_the_expected_values(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    measures = dict.fromkeys(key for pairs in EXPECTED.values() for key in pairs)
    for key in measures:
        form = scale(key).format
        cells = [f"{value:{form}} ± {tolerance:{form}}" for value, tolerance in (p[key] for p in EXPECTED.values())]
        assert f"| {' | '.join(cells)} |" in text, key


@pytest.mark.slow
def test_demo_reaches_its_expected_figures(run_script, tmp_path):
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

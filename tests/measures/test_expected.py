import math

import pytest
import yaml

from med_model.errors import UserError
from med_model.measures.expected import Outside, outside_expected, print_verdict, read_expected
from med_model.measures.interval import Figure


@pytest.mark.parametrize(
    "wanted, complaint",
    [
        ({"GPT": {"stopped": [1, 0]}}, "GPT is no model. Use one of baseline, base, sft, final."),
        ({"sft": [1, 0]}, "sft is [1, 0]. Map measures to values."),
        ({"sft": {"stop": [1, 0]}}, "sft stop is no measure. Use one of bits_per_byte"),
        ({"sft": {"stopped": 1}}, "sft stopped is 1. Write [value, tolerance]."),
        ({"sft": {"stopped": ["all", 0]}}, "Write [value, tolerance]."),
    ],
    ids=["model", "no mapping", "measure", "one number", "a word"],
)
def test_read_expected_names_the_key_and_the_value_found(wanted, complaint, tmp_path):
    file = tmp_path / "wanted.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_expected(str(file))
    assert complaint in str(refused.value) and str(file) in str(refused.value)


def figures(value):
    return {"sft": {"stopped": Figure(value, 0.0, 1.0, 10)}}


def test_outside_expected_counts_a_figure_at_the_tolerance_as_within():
    expected = {"sft": {"stopped": [0.5, 0.25]}}
    assert outside_expected(figures(0.75), expected) == []
    assert outside_expected(figures(0.8), expected) == [Outside("sft", "stopped", 0.8, 0.5, 0.25)]


def test_outside_expected_returns_missing_figures_and_nan():
    expected = {"sft": {"stopped": [0.5, 0.25]}, "final": {"stopped": [0.5, 0.25]}}
    nan, missing = outside_expected(figures(math.nan), expected)
    assert math.isnan(nan.value) and missing == Outside("final", "stopped", None, 0.5, 0.25)


def test_print_verdict_names_the_file_and_each_figure_outside(capsys):
    print_verdict([], "wanted.yaml")
    assert capsys.readouterr().out == "Everything is within the expected values of wanted.yaml.\n"
    print_verdict([Outside("final", "stopped", 0.8, 0.5, 0.25)], "wanted.yaml")
    head, line = capsys.readouterr().out.splitlines()
    assert head == "Outside the expected values of wanted.yaml:"
    assert line == "  Final (DPO), stopped by itself ↑: 80.0%, expected 50.0% ± 25.0%"

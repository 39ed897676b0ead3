import copy

import numpy as np
import pytest

from med_model.measures.interval import Figure, Measure, difference, figure, measure
from med_model.measures.scales import BASELINE, FLAW, MEASURES, SUMMARY
from med_model.measures.table import (
    change_word,
    print_all,
    print_answers,
    print_figures,
    print_stages,
    print_summary,
    shortened,
    with_interval,
)
from med_model.screen import COLUMNS, width

LONG_FLAW = "一种名字特别长的缺陷" * 20
KEYS = [*MEASURES, "key_fact_recall/later_turn", "key_fact_recall/story", FLAW + "vague", FLAW + LONG_FLAW]


def measured(key: str, number: int) -> Measure:
    """Return the measure `key` of 1,000 random items. `number` is 0, 1 or 2: a higher number gives higher values.

    The mean of a margin is about -500, 0 or 500 nats. The mean of another measure is about 0, 0.5 or 1.
    """
    rng = np.random.default_rng(number)
    if "margin" in key:
        return measure(rng.normal(500 * (number - 1), 400, 1_000))
    return measure(rng.random(1_000) < number / 2)


@pytest.fixture(scope="module")
def compared():
    """Return {model: {measure: figure}} of four models, and {(model before, model after): {measure: difference}}."""
    numbers = {BASELINE: 1, "base": 0, "sft": 1, "final": 2}
    models = {model: {key: measured(key, number) for key in KEYS} for model, number in numbers.items()}
    figures = {model: {key: figure(one) for key, one in measures.items()} for model, measures in models.items()}
    pairs = [("base", "sft"), ("sft", "final"), *((BASELINE, model) for model in numbers if model != BASELINE)]
    changes = {
        (before, after): {key: difference(models[after][key], models[before][key]) for key in KEYS}
        for before, after in pairs
    }
    return figures, changes


@pytest.fixture
def comparison(compared):
    """Return a copy of `compared` that a test may change."""
    return copy.deepcopy(compared)


def printed_lines(capsys) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if width(line) > COLUMNS] == []
    return lines


def test_shortened_marks_a_cut():
    assert shortened("一二三", 6) == "一二三"
    assert shortened("一二三四", 6) == "一二…" and shortened("一\n二", 6) == "一…"


def test_with_interval_uses_the_unit_of_the_value():
    assert with_interval("stopped", Figure(0.5, 0.4, 0.61, 100)) == "50.0% [40.0, 61.0]"
    assert with_interval("preference_margin", Figure(12.34, -1.0, 20.0, 100)) == "12.3 [-1.0, 20.0]"
    assert with_interval("stopped", Figure(0.5, -0.4, 0.61, 100), "+") == "+50.0% [-40.0, +61.0]"


@pytest.mark.parametrize(
    "key, low, high, word",
    [
        ("stopped", 0.1, 0.3, "better"),
        ("stopped", -0.3, -0.1, "worse"),
        ("stopped", -0.1, 0.3, "same"),
        ("bits_per_byte", 0.1, 0.3, "worse"),
        ("bits_per_byte", -0.3, -0.1, "better"),
        ("characters", 0.1, 0.3, "changed"),
        ("characters", -0.1, 0.3, "same"),
        (FLAW + "vague", 0.1, 0.3, "better"),
    ],
)
def test_change_word_knows_the_direction_of_the_measure(key, low, high, word):
    assert change_word(key, Figure((low + high) / 2, low, high, 10)) == word


def test_print_summary_has_ten_rows_with_a_word_per_change(comparison, capsys):
    figures, changes = comparison
    print_summary(figures, changes)
    head, *rows = printed_lines(capsys)
    assert head.split("  ")[0] == "measure" and head.endswith("vs baseline")
    assert len(rows) == len(SUMMARY) == 10
    recall = next(row for row in rows if row.startswith("key-fact recall ↑"))
    assert recall.split()[3:] == ["1,000", "50.7%", "0.0%", "50.7%", "better", "100.0%", "better", "better"]


def test_print_summary_shows_a_dash_for_a_figure_that_a_model_lacks(comparison, capsys):
    figures, changes = comparison
    for keys in (figures["base"], figures[BASELINE], *(changes[pair] for pair in changes if pair[1] != "final")):
        keys.pop("stopped", None)
    changes[BASELINE, "final"].pop("stopped")
    print_summary(figures, changes)
    row = next(line for line in printed_lines(capsys) if line.startswith("stopped"))
    assert row.split()[4:] == ["1,000", "-", "-", "50.7%", "100.0%", "better", "-"]


def test_print_summary_without_any_of_its_rows_shows_all_rows(capsys):
    print_summary({"base": {"choice_accuracy": Figure(0.25, 0.2, 0.3, 170)}}, {})
    assert [line.split()[:2] for line in printed_lines(capsys)[1:]] == [["multiple", "choice,"]]


def test_print_stages_names_what_each_stage_changed(comparison, capsys):
    figures, changes = comparison
    changes["sft", "final"]["stopped"] = Figure(0.0, -0.1, 0.1, 1_000)
    print_stages(figures, changes)
    text = " ".join(" ".join(printed_lines(capsys)).split())
    first, second = text.split("SFT → Final (DPO)")
    assert first.startswith("Base → SFT better: key-fact recall 0.0% → 50.7%, ")
    assert "worse: held-out bits per byte 0.000 → 0.507" in first and "same" not in first
    assert second.endswith("same: stopped by itself 50.7% → 100.0%")


def test_print_stages_prints_nothing_without_a_measure_of_the_summary(comparison, capsys):
    figures, changes = comparison
    print_stages(figures, {("sft", "final"): {FLAW + "vague": changes["sft", "final"][FLAW + "vague"]}})
    assert printed_lines(capsys) == []


def test_print_all_has_a_block_per_measure_and_a_row_per_model(comparison, capsys):
    figures, changes = comparison
    print_all(figures, changes)
    _, *lines = printed_lines(capsys)
    assert len(lines) == 5 * len(KEYS)
    titles = [line for line in lines if not line.startswith("  ")]
    assert titles[0] == "held-out bits per byte ↓ (n = 1,000)"
    accuracy = titles.index("preference accuracy ↑ (n = 1,000)")
    assert titles[accuracy + 2].startswith("preference accuracy, flaw 一种名字特别长的")
    assert titles[accuracy + 1] == "preference accuracy, flaw vague ↑ (n = 1,000)"
    block = lines[lines.index("preference margin, nats ↑ (n = 1,000)") + 1 :][:4]
    assert [row.split()[0] for row in block] == ["Baseline", "Base", "SFT", "Final"]
    assert "better" not in block[0] + block[1] and "better   +4" in block[2] and "[+4" in block[3]
    assert [row.split()[-1] for row in block[1:]] == ["worse", "same", "better"]


def test_print_figures_returns_the_figures_that_it_prints(capsys):
    measures = {key: measured(key, 2) for key in KEYS}
    figures = print_figures(measures)
    lines = printed_lines(capsys)
    assert figures == {key: figure(one) for key, one in measures.items()} and len(lines) == len(KEYS)
    assert lines[1].split() == ["100.0%", "[99.6,", "100.0]", "n", "=", "1,000", "key-fact", "recall", "↑"]


@pytest.mark.parametrize("columns, width_found", [(200, 100), (100, 100), (90, 90), (60, 60)])
def test_print_answers_fits_the_terminal_and_at_most_100_columns(capsys, monkeypatch, columns, width_found):
    monkeypatch.setenv("COLUMNS", str(columns))
    answers = {model: ["请立即拨打120，" * 40] for model in ("base", "sft", "final")}
    print_answers(["我爸突然嘴歪" * 20], answers)
    lines = printed_lines(capsys)
    assert width_found - 9 < max(map(width, lines)) <= width_found
    assert sum("[Final (DPO)]" in line for line in lines) == 1
    assert any("[Base]" in line and "[SFT]" in line for line in lines) == (columns >= 90)

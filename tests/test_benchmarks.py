"""The benchmark runs and its figures are consistent; how fast anything is depends on the machine and is not tested."""

import json
import statistics
import sys

import pytest

MEASURES = {
    "pretrain_mixed",
    "pretrain_full_blocks",
    "roof_fraction",
    "time_to_loss",
    *(["peak_memory"] if sys.platform.startswith("linux") else []),
    "sft_rows",
    "dpo_first_epoch",
    "dpo_later",
    "generate",
    "generate_batch",
}


@pytest.fixture(scope="module")
def benchmark(run_script, tmp_path_factory):
    """(what a smoke run prints, its JSON)."""
    file = tmp_path_factory.mktemp("benchmark") / "figures.json"
    done = run_script("benchmarks/run.py", "--smoke", "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


def test_every_measure_is_printed_and_written(benchmark):
    printed, result = benchmark
    assert set(result["measures"]) == MEASURES
    assert set(result["rounds"]) >= MEASURES
    assert all(value > 0 for value in result["measures"].values())
    assert sum(line.startswith("| ") for line in printed.splitlines()) == 1 + len(result["rounds"])


def test_a_measure_is_the_median_of_our_figure_over_the_references(benchmark):
    _, result = benchmark
    for name, figure in result["rounds"].items():
        sides = [figure["ours"], figure["reference"]]
        upper, lower = reversed(sides) if figure["less_is_better"] else sides
        ratios = [above / below for above, below in zip(upper, lower, strict=True)]
        assert figure["ratios"] == pytest.approx(ratios), name
        if name in MEASURES:
            assert result["measures"][name] == pytest.approx(statistics.median(ratios)), name


def test_both_sides_answer_greedily_alike(benchmark):
    printed, _ = benchmark
    assert "greedy ids identical: 1 / 1" in printed


def test_an_unknown_section_ends_with_the_list_of_sections(run_script):
    done = run_script("benchmarks/run.py", "--sections", "pretrian")
    assert done.returncode == 2
    assert "--sections pretrian" in done.stderr
    assert "time_to_loss" in done.stderr

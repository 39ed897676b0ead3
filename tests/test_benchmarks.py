"""Check that benchmarks/run.py runs and that its figures are consistent.

The speed depends on the machine and is not tested.
"""

import json
import statistics
import sys

import pytest

from med_model.measures.record import check_record

pytestmark = pytest.mark.long

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
    """Return the standard output and the JSON record of a very small run of the benchmark (--smoke)."""
    file = tmp_path_factory.mktemp("benchmark") / "figures.json"
    done = run_script("benchmarks/run.py", "--smoke", "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


def test_benchmark_prints_and_records_every_measure(benchmark):
    printed, record = benchmark
    check_record(record)
    assert set(record["figures"]) == {"ours", "reference", "ratio"}
    for figures in record["figures"].values():
        assert {name for name in figures if not name.endswith("_stock_bf16")} == MEASURES
        assert figures.keys() == record["rounds"].keys() == record["units"].keys()
        assert all(figure["value"] > 0 for figure in figures.values())
    assert set(record["bars"]) == MEASURES
    assert sum(line.startswith("| ") for line in printed.splitlines()) == 1 + len(record["rounds"])


def test_ratio_is_the_median_of_the_rounds_and_above_1_if_ours_is_better(benchmark):
    _, record = benchmark
    for name, comparison in record["rounds"].items():
        sides = [comparison["ours"], comparison["reference"]]
        upper, lower = reversed(sides) if comparison["less_is_better"] else sides
        ratios = [above / below for above, below in zip(upper, lower, strict=True)]
        rounds_by_group = {"ours": comparison["ours"], "reference": comparison["reference"], "ratio": ratios}
        for group, rounds in rounds_by_group.items():
            figure = record["figures"][group][name]
            expected = {"value": statistics.median(rounds), "low": min(rounds), "high": max(rounds), "n": len(rounds)}
            assert figure == pytest.approx(expected), (group, name)


def test_engines_generate_the_same_greedy_ids(benchmark):
    printed, record = benchmark
    assert "Greedy ids are identical for 1 of 1 prompts." in printed
    assert record["details"]["greedy_ids_identical"] == "1 of 1"


def test_benchmark_refuses_an_unknown_section_with_the_list_of_sections(run_script):
    done = run_script("benchmarks/run.py", "--sections", "pretrian")
    assert done.returncode == 2
    assert "--sections pretrian" in done.stderr
    assert "time_to_loss" in done.stderr

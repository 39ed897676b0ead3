"""Check benchmarks/study.py and the cells of benchmarks/cells.py."""

import json
import math

import pytest

from cells import SEEDS, SHARES, WORDINGS, Cell, Texts, all_cells, read_texts
from med_model.measures.record import check_record
from study import logistic_fit, print_study, wanted_size


@pytest.fixture(scope="module")
def texts() -> Texts:
    return read_texts()[0]


def keys(records: list[dict]) -> set[str]:
    return {json.dumps(record, ensure_ascii=False) for record in records}


def test_a_cell_has_so_many_wordings_per_answer(texts):
    rows = texts.part(Cell(wordings=3, share=1.0, seed=1)).rows
    counts = [sum(row["item"] == item for row in rows) for item in {row["item"] for row in rows}]
    assert set(counts) == {3} and len(counts) > 100


def test_a_larger_cell_contains_a_smaller_one(texts):
    small, large = texts.part(Cell(2, 0.1, 1)), texts.part(Cell(24, 1 / 3, 1))
    for less, more in zip(small, large, strict=True):
        assert less and keys(less) < keys(more)


def test_seeds_draw_other_wordings_and_topics(texts):
    one, other = texts.part(Cell(2, 0.1, 1)), texts.part(Cell(2, 0.1, 2))
    assert keys(one.documents) != keys(other.documents) and keys(one.rows) != keys(other.rows)


def test_cells_are_of_three_seeds_and_have_files_of_their_own():
    cells = all_cells()
    assert len(cells) == len(SEEDS) * (len(WORDINGS) + len(SHARES)) == len({cell.file for cell in cells})


def test_fit_finds_the_size_of_a_known_curve():
    sizes = [1, 2, 4, 8]
    shares = [1 / (1 + math.exp(2 - 0.8 * math.log(size))) for size in sizes]
    start, slope = logistic_fit(sizes, shares)
    assert (start, slope) == pytest.approx((-2, 0.8))
    assert wanted_size(start, slope, 0.5) == pytest.approx(math.exp(2.5))


def test_print_study_shows_both_curves_and_the_wanted_wordings(capsys):
    records = {}
    for cell in all_cells():
        figures = {"bits_per_byte": {"value": 3 - cell.share}, "key_fact_recall": {"value": cell.wordings / 26}}
        records[cell] = {"topics": round(20 * cell.share), "figures": {"sft": figures}}
    print_study(records)
    printed = capsys.readouterr().out
    assert "\n24                   2.000 (2.000 – 2.000)     92.3% (92.3% – 92.3%)\n" in printed
    assert "\n2       2.900 (2.900 – 2.900)     92.3% (92.3% – 92.3%)\n" in printed
    assert printed.count("reaches a key-fact recall of 85% at 2") == len(SEEDS)


@pytest.mark.slow
def test_study_runs_a_missing_cell_and_keeps_its_record(run_script, tmp_path):
    done = run_script("benchmarks/study.py", "--cells", 1, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / all_cells()[0].file).read_text(encoding="utf-8"))
    check_record(record)
    assert record["figures"]["sft"]["bits_per_byte"]["value"] < 4
    again = run_script("benchmarks/study.py", "--cells", 0, "--folder", tmp_path)
    assert again.returncode == 0 and "wordings per answer" in again.stdout

import copy
import hashlib
import importlib.util
import json
import sys

import pytest
from conftest import ROOT

from med_model import paths
from med_model.measures import record
from med_model.measures.interval import Figure
from med_model.measures.record import TYPES, as_typed, check_record, command_line, described, new_record

RESULTS = sorted((ROOT / "results").glob("*.json"))


@pytest.fixture(scope="module")
def complete():
    """Return a record of results: one data file, one figure, and the key `answers`, which is not in the schema."""
    return new_record([paths.CHOICES], {"base": {"stopped": Figure(0.5, 0.25, 0.75, 4)}}, answers=["答"])


def test_results_folder_has_three_records_or_more():
    assert len(RESULTS) >= 3


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_results_follow_the_schema(file):
    check_record(json.loads(file.read_text(encoding="utf-8")))


def test_new_record_has_every_key_of_the_schema_and_the_extra_keys(complete):
    assert list(complete) == [*TYPES, "answers"]
    assert complete["figures"] == {"base": {"stopped": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}}}
    assert complete["data"][0]["source"] == "sft/dataset/choices.jsonl"
    assert {"python", "torch", "transformers"} <= set(complete["versions"])
    assert "threads, torch 2." in complete["machine"]
    assert json.loads(json.dumps(complete)) == complete


@pytest.mark.parametrize("key", TYPES)
def test_check_record_names_a_missing_key_and_a_key_of_another_type(complete, key):
    without = {name: value for name, value in complete.items() if name != key}
    with pytest.raises(ValueError, match=f"no key '{key}'"):
        check_record(without)
    with pytest.raises(ValueError, match=f"'{key}' is 1, of type int"):
        check_record(complete | {key: 1})


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda r: r["figures"]["base"]["stopped"].pop("n"), "'figures' 'base' 'stopped' has no key 'n'"),
        (lambda r: r["figures"]["base"]["stopped"].update(value=None), "'stopped': 'value' is None"),
        (lambda r: r["figures"]["base"]["stopped"].update(n=True), "'stopped': 'n' is True"),
        (lambda r: r["figures"]["base"]["stopped"].update(spread=1), "'stopped' has the unknown key 'spread'"),
        (lambda r: r["figures"]["base"]["stopped"].update(low=0.8), "'low' 0.8 is above 'high' 0.75"),
        (lambda r: r["figures"]["base"].update(stopped=0.5), "'base' 'stopped' is no object but 0.5"),
        (lambda r: r["figures"].update(base=[]), r"'figures' 'base' is no object but \[\]"),
        (lambda r: r["data"][0].pop("sha256"), "'data' has no key 'sha256'"),
        (lambda r: r["data"].append(1), "'data' is no object but 1"),
        (lambda r: r["versions"].update(torch=2), "'versions': 'torch' is 2"),
        (lambda r: r.update(date="29.11.2026"), "'date' is '29.11.2026', want YYYY-MM-DD"),
    ],
)
def test_check_record_names_a_fault_inside_a_value(complete, change, complaint):
    faulty = copy.deepcopy(complete)
    change(faulty)
    with pytest.raises(ValueError, match=complaint):
        check_record(faulty)


def test_check_record_accepts_the_unknown_values_of_a_transcribed_record(complete):
    unknown = {"base": {"stopped": {"value": 0.5, "low": None, "high": None, "n": None}}}
    check_record(complete | {"commit": None, "versions": {}, "data": ["some texts"], "figures": unknown})


def test_described_hashes_the_bytes_of_all_files_in_order(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"{name}文\n", encoding="utf-8")
    digest = hashlib.sha256("a文\nb文\n".encode()).hexdigest()
    assert described(str(tmp_path)) == {"source": str(tmp_path), "sha256": digest[:16], "files": 2}


def test_as_typed_shortens_only_paths_of_the_project():
    assert as_typed(str(paths.CHOICES)) == "sft/dataset/choices.jsonl"
    for text in ("/tmp//elsewhere", "my_texts/*.jsonl", "hf://datasets/a/b/c.json", "--data", "问/答"):
        assert as_typed(text) == text


def test_command_line_has_paths_relative_to_the_project_and_quotes(monkeypatch):
    options = ["--data", str(paths.CHOICES), "--prompt", "两 个"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "compare_different_model.py"), *options])
    typed = "--data sft/dataset/choices.jsonl --prompt '两 个'"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == f"python compare_different_model.py {typed}"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec("med_model.measures.evaluate"))
    assert command_line() == f"python -m med_model.measures.evaluate {typed}"


def test_commit_is_that_of_the_project_or_none_without_git(tmp_path, monkeypatch):
    if (ROOT / ".git").exists():
        assert len(record.commit()) == 40
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert record.commit() is None

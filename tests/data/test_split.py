import json

import pytest

from med_model.data.records import conversation_of, document_of, first_question
from med_model.data.split import HELDOUT_SHARE, read_all, read_split
from med_model.errors import UserError


def write(path, text: str):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def as_jsonl(path, rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# Tests of read_all


def test_read_all_leaves_out_blank_records_and_prints_their_number(tmp_path, capsys):
    as_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": " "}, {"text": "二"}, {"text": None}])
    assert read_all([tmp_path], document_of) == ["一", "二"]
    printed = capsys.readouterr().out
    assert "two equal answers: 2" in printed
    assert "a.jsonl" in printed and "row 2" in printed


def test_read_all_prints_nothing_if_no_record_is_blank(tmp_path, capsys):
    rows = [{"text": "高血压要少盐。"}, {"text": "发烧多喝水。"}]
    assert len(read_all([as_jsonl(tmp_path / "a.jsonl", rows)], document_of)) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name, text", [("a.jsonl", '{"text": " "}\n'), ("b.txt", ""), ("c.json", "[]"), ("d.csv", "text\n")]
)
def test_read_all_names_a_source_without_a_usable_record(tmp_path, name, text):
    with pytest.raises(UserError, match=f"No usable record in .*{name}"):
        read_all([write(tmp_path / name, text)], document_of)


def test_read_all_counts_rows_from_one_in_each_file(tmp_path):
    as_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": "二"}])
    as_jsonl(tmp_path / "b.jsonl", [{"text": "一"}, {"body": "x"}])
    with pytest.raises(UserError, match=r"b\.jsonl.*row 2\b.*body"):
        read_all([tmp_path], document_of)


def test_read_all_stops_reading_at_the_limit(tmp_path):
    file = as_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": "二"}, {"body": "never read"}])
    assert read_all([file], document_of, limit=2) == ["一", "二"]


# Tests of read_split


def test_read_split_keeps_all_answers_to_one_question_on_one_side(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "你是助手"},
                {"role": "user", "content": f"问{number // 4}"},
                {"role": "assistant", "content": f"答{number}"},
            ]
        }
        for number in range(40)
    ]
    file = as_jsonl(tmp_path / "rows.jsonl", rows)
    kept, heldout = read_split([file], None, (file, file), conversation_of, first_question, None, seed=1)
    questions = [{row[1]["content"] for row in side} for side in (kept, heldout)]
    assert len(questions[0]) == 9 and len(questions[1]) == 1 and not questions[0] & questions[1]
    assert len(kept) + len(heldout) == 40


@pytest.fixture
def files(tmp_path):
    """Write three files: 200 training documents, 3 held-out documents, 100 documents of a user. Return the paths."""
    return [
        as_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{number}"} for number in range(count)])
        for name, count in (("bundled", 200), ("heldout", 3), ("mine", 100))
    ]


def split(files, data, eval_data, limit=None):
    return read_split(data, eval_data, tuple(files[:2]), document_of, str, limit, seed=1)


def test_read_split_reads_the_bundled_files_by_default_and_limits_only_training(files):
    kept, heldout = split(files, None, None, limit=5)
    assert kept == [f"bundled{number}" for number in range(5)]
    assert heldout == ["heldout0", "heldout1", "heldout2"]


def test_read_split_holds_out_a_share_of_data_without_eval_data(files):
    kept, heldout = split(files, [files[2]], None)
    assert len(heldout) == 100 * HELDOUT_SHARE
    assert sorted(kept + heldout) == sorted(f"mine{number}" for number in range(100))
    assert split(files, [files[2]], None) == (kept, heldout), "the same seed must give the same split"


def test_read_split_keeps_all_data_for_training_if_eval_data_is_given(files):
    kept, heldout = split(files, [files[2]], [files[1]])
    assert len(kept) == 100 and len(heldout) == 3


def test_read_split_refuses_to_split_one_group(files, tmp_path):
    same = as_jsonl(tmp_path / "same.jsonl", [{"text": "一"}, {"text": "一"}])
    with pytest.raises(UserError, match="--eval_data"):
        split(files, [same], None)

import csv
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from med_model.data.records import conversation_of, document_of, preference_of, texts_of
from med_model.data.sources import find_files, read_records
from med_model.data.split import read_all, read_split
from med_model.errors import UserError

ROWS = [{"text": "高血压要少盐。", "topic": "高血压"}, {"text": "发烧多喝水。\n注意休息。", "topic": "发热"}]
QUESTION, ANSWER, WORSE = "高血压要少吃盐吗？", "要，每天不超过5克。", "随便吃。"
ROUND = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def write(path, text: str, encoding: str = "utf-8"):
    path.write_text(text, encoding=encoding, newline="")
    return path


def as_json(path, rows):
    return write(path, json.dumps(rows, ensure_ascii=False, indent=1))


def as_jsonl(path, rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def as_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def records(*files) -> list[dict]:
    return [record for _, record in read_records(files)]


# formats


@pytest.mark.parametrize("write_as", [as_json, as_jsonl, as_csv, as_parquet], ids=lambda write_as: write_as.__name__)
def test_the_same_rows_come_out_of_every_format(tmp_path, write_as):
    file = write_as(tmp_path / f"rows.{write_as.__name__.removeprefix('as_')}", ROWS)
    assert records(file) == ROWS


def test_a_json_file_may_be_one_line_or_one_single_record(tmp_path):
    assert records(write(tmp_path / "array.json", json.dumps(ROWS))) == ROWS
    assert records(write(tmp_path / "object.json", json.dumps(ROWS[0], indent=2))) == ROWS[:1]
    assert records(write(tmp_path / "compact.json", json.dumps(ROWS[0]))) == ROWS[:1]


def test_a_json_file_that_holds_one_object_a_line_is_read(tmp_path):
    assert records(as_jsonl(tmp_path / "as_the_hub_has_it.json", ROWS)) == ROWS


def test_blank_lines_in_jsonl_are_no_records(tmp_path):
    text = "\n" + json.dumps(ROWS[0]) + "\r\n\r\n   \n" + json.dumps(ROWS[1])
    assert records(write(tmp_path / "gaps.jsonl", text)) == ROWS


def test_txt_documents_are_separated_by_blank_lines(tmp_path):
    text = "\n\n高血压要少盐。\n每天量血压。\n \n\n发烧多喝水。\n"
    assert records(write(tmp_path / "a.txt", text)) == [
        {"text": "高血压要少盐。\n每天量血压。"},
        {"text": "发烧多喝水。"},
    ]


def test_txt_with_windows_line_ends_reads_like_any_other(tmp_path):
    assert records(write(tmp_path / "a.txt", "一\r\n二\r\n\r\n三")) == [{"text": "一\n二"}, {"text": "三"}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path, name):
    text = {
        "a.json": json.dumps(ROWS[:1]),
        "a.jsonl": json.dumps(ROWS[0]),
        "a.csv": f"text,topic\n{ROWS[0]['text']},{ROWS[0]['topic']}\n",
        "a.txt": ROWS[0]["text"],
    }[name]
    (record,) = records(write(tmp_path / name, text, encoding="utf-8-sig"))
    assert record["text"] == ROWS[0]["text"]


def test_a_csv_field_longer_than_the_csv_modules_own_limit_is_read(tmp_path):
    long = [{"text": "血" * 200_000, "topic": "长"}]
    assert records(as_csv(tmp_path / "long.csv", long)) == long


# files, folders, globs, addresses


def test_a_folder_gives_its_data_files_of_every_depth_in_a_fixed_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.jsonl", "b/a.txt", "a.csv"):
        write(tmp_path / name, "text\n一\n")
    write(tmp_path / "README.md", "not data")
    assert find_files([tmp_path]) == [tmp_path / name for name in ("a.csv", "b/a.txt", "c.jsonl")]


def test_a_glob_gives_what_it_matches_and_sources_keep_their_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "z.txt"):
        write(tmp_path / name, "x")
    assert find_files([str(tmp_path / "*.jsonl")]) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert tmp_path / "deep/c.jsonl" in find_files([str(tmp_path / "**/*.jsonl")])
    assert find_files([tmp_path / "z.txt", tmp_path / "a.jsonl"]) == [tmp_path / "z.txt", tmp_path / "a.jsonl"]


@pytest.mark.parametrize("missing", ["nowhere.jsonl", "*.parquet", "empty"])
def test_a_source_without_data_is_named(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"no data in .*{missing.replace('*', '[*]')}"):
        find_files([str(tmp_path / missing)])


def test_a_file_of_an_unknown_format_is_refused_by_name(tmp_path):
    write(tmp_path / "words.docx", "x")
    with pytest.raises(UserError, match="words.docx.*\\.jsonl"):
        find_files([str(tmp_path / "words.docx")])


def hub_error(address: str, cache) -> str:
    """What a user sees who has no network; its own process, since huggingface_hub reads its settings once."""
    code = "import sys; from med_model.command import run; from med_model.data.sources import find_files; "
    code += "run(lambda: find_files(sys.argv[1:]))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_hub_file_that_is_not_there_offline_says_what_to_do(tmp_path):
    error = hub_error("hf://datasets/shibing624/medical/pretrain/train.json", tmp_path)
    assert "shibing624/medical/pretrain/train.json" in error
    assert "HF_ENDPOINT" in error


def test_a_hub_address_that_cannot_exist_is_an_error_of_one_line(tmp_path):
    assert "hf://datasets/a b/c d/e.json" in hub_error("hf://datasets/a b/c d/e.json", tmp_path)


def test_a_hub_address_without_a_file_is_incomplete():
    with pytest.raises(UserError, match="hf://datasets/shibing624/medical: write hf://datasets/OWNER/NAME/FILE"):
        find_files(["hf://datasets/shibing624/medical"])


# errors of files


def test_a_line_that_is_not_json_is_named_by_its_place_in_the_file(tmp_path):
    file = write(tmp_path / "bad.jsonl", '{"text": "一"}\n\n{"text": "二"\n')
    with pytest.raises(UserError, match=r"bad\.jsonl.*line 3\b"):
        records(file)


def test_a_broken_json_array_names_the_line_of_the_fault(tmp_path):
    with pytest.raises(UserError, match=r"bad\.json, line 3\b"):
        records(write(tmp_path / "bad.json", '[\n{"text": "一"},\n{"text" "二"}\n]'))


@pytest.mark.parametrize("name, text", [("a.jsonl", '{"text": "一"}\n["二"]\n'), ("a.json", '[{"text": "一"}, "二"]')])
def test_a_record_that_is_no_object_is_named_by_file_and_row(tmp_path, name, text):
    with pytest.raises(UserError, match=rf"{name}.*row 2\b.*二"):
        records(write(tmp_path / name, text))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_file_in_another_encoding_is_told_to_be_saved_as_utf8(tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "高血压要少盐"}'.encode("gb18030"))
    with pytest.raises(UserError, match=f"{name}.*UTF-8"):
        records(tmp_path / name)


def test_a_parquet_file_that_is_none_is_a_users_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="broken.parquet"):
        records(write(tmp_path / "broken.parquet", "version https://git-lfs.github.com/spec/v1\n"))


def test_a_csv_row_with_more_fields_than_the_header_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv.*row 2\b"):
        read_all([write(tmp_path / "a.csv", "text,topic\n好,一\n要少盐,多吃菜,二\n")], document_of)


# pre-training


def test_a_document_is_its_text_without_outer_space():
    assert document_of("f, row 1", {"text": "\n 高血压要少盐。 \n", "topic": "x"}) == "高血压要少盐。"


@pytest.mark.parametrize(
    "read_one, wanted",
    [(document_of, "`text`"), (conversation_of, "instruction/input/output"), (preference_of, "response_chosen")],
)
def test_a_record_of_another_shape_names_place_fields_found_and_fields_wanted(read_one, wanted):
    with pytest.raises(UserError, match="f, row 7.*titel, body") as error:
        read_one("f, row 7", {"titel": "x", "body": "y"})
    assert wanted in str(error.value)


def test_a_field_that_is_no_text_is_named():
    with pytest.raises(UserError, match="f, row 7.*`text`.*int.*42"):
        document_of("f, row 7", {"text": 42})


# SFT


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": QUESTION, "input": "", "output": ANSWER},
        {"instruction": QUESTION, "output": f" {ANSWER}\n"},
        {"instruction": QUESTION, "input": None, "output": ANSWER},
        {"prompt": QUESTION, "completion": ANSWER},
        {"prompt": ROUND[:1], "completion": ROUND[1:]},
        {"messages": ROUND},
        {"messages": ROUND, "prompt": "ignored", "completion": "ignored"},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
        {"conversations": [{"from": "user", "value": QUESTION}, {"from": "assistant", "value": ANSWER}]},
        {"messages": None, "instruction": QUESTION, "output": ANSWER},  # parquet fills absent columns with null
    ],
)
def test_every_shape_of_a_question_and_answer_gives_the_same_turns(record):
    assert conversation_of("f, row 1", record) == ROUND


def test_a_column_that_is_null_does_not_hide_the_ones_that_are_filled():
    record = {"conversations": None, "instruction": QUESTION, "output": ANSWER}
    assert conversation_of("f, row 1", record) == ROUND


def test_an_input_follows_its_instruction_on_a_new_line():
    turns = conversation_of("f, row 1", {"instruction": "看报告", "input": "血压 150/95", "output": ANSWER})
    assert turns[0]["content"] == "看报告\n血压 150/95"


def test_several_rounds_and_a_system_turn_are_kept():
    turns = [{"role": "system", "content": "你是医学助手。"}, *ROUND, *ROUND]
    assert conversation_of("f, row 1", {"messages": turns}) == turns
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    assert conversation_of("f, row 1", {"conversations": sharegpt}) == turns
    assert conversation_of("f, row 1", {"prompt": turns[:-1], "completion": ANSWER}) == turns


@pytest.mark.parametrize(
    "turns",
    [
        ROUND[:1],
        ROUND[1:],
        [*ROUND, ROUND[0]],
        [ROUND[0], *ROUND],
        [*ROUND, ROUND[1]],
        [ROUND[0], {"role": "system", "content": "x"}, ROUND[1]],
        [{"role": "system", "content": "x"}],
    ],
)
def test_turns_that_do_not_alternate_are_refused_with_place_and_roles(turns):
    with pytest.raises(UserError, match="f, row 7.*found") as error:
        conversation_of("f, row 7", {"messages": turns})
    assert str([turn["role"] for turn in turns]) in str(error.value)


@pytest.mark.parametrize(
    "turns, told",
    [
        ([{"role": "doctor", "content": "x"}, ROUND[1]], "doctor"),
        ([{"role": "user"}, ROUND[1]], "content"),
        (["好", ROUND[1]], "好"),
        ([{"role": "user", "content": ["x"]}, ROUND[1]], "content.*list"),
        ([{"role": ["user"], "content": "x"}, ROUND[1]], "role"),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(turns, told):
    with pytest.raises(UserError, match=f"f, row 7.*{told}"):
        conversation_of("f, row 7", {"messages": turns})


def test_sharegpt_turns_without_from_and_value_are_named():
    with pytest.raises(UserError, match="f, row 7.*`from` and `value`"):
        conversation_of("f, row 7", {"conversations": ROUND})


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_a_conversation_with_a_blank_turn_is_blank(blank):
    assert conversation_of("f, row 1", {"instruction": QUESTION, "output": blank}) == []
    assert conversation_of("f, row 1", {"instruction": blank, "output": ANSWER}) == []
    assert conversation_of("f, row 1", {"messages": [*ROUND, ROUND[0], {"role": "assistant", "content": blank}]}) == []


def test_the_texts_of_a_record_are_its_document_or_its_turns():
    assert texts_of("f, row 1", ROWS[0]) == [ROWS[0]["text"]]
    assert texts_of("f, row 1", {"messages": ROUND}) == [QUESTION, ANSWER]
    assert texts_of("f, row 1", {"text": " "}) == []


# preferences


@pytest.mark.parametrize(
    "record",
    [
        {"question": QUESTION, "response_chosen": ANSWER, "response_rejected": WORSE},
        {"prompt": QUESTION, "chosen": f"{ANSWER} ", "rejected": WORSE},
        {"prompt": ROUND[:1], "chosen": ROUND[1:], "rejected": [{"role": "assistant", "content": WORSE}]},
        {"prompt": QUESTION, "chosen": ROUND[1:], "rejected": WORSE},
        {"question": ROUND[:1], "response_chosen": ANSWER, "response_rejected": WORSE},
        {"question": QUESTION, "response_chosen": ROUND[1:], "response_rejected": WORSE},
        {"chosen": ROUND, "rejected": [ROUND[0], {"role": "assistant", "content": WORSE}]},
    ],
)
def test_every_shape_of_a_preference_gives_the_same_pair(record):
    assert preference_of("f, row 1", record) == (ROUND[:1], ANSWER, WORSE)


def test_a_preference_keeps_the_rounds_before_the_last_question():
    turns = [{"role": "system", "content": "你是医学助手。"}, *ROUND, ROUND[0]]
    assert preference_of("f, row 1", {"prompt": turns, "chosen": ANSWER, "rejected": WORSE}) == (turns, ANSWER, WORSE)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_preference_with_a_blank_part_is_blank(place):
    parts = [QUESTION, ANSWER, WORSE]
    parts[place] = " "
    assert preference_of("f, row 1", dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))) is None


def test_a_preference_between_equal_answers_is_left_out():
    assert preference_of("f, row 1", {"prompt": QUESTION, "chosen": ANSWER, "rejected": f" {ANSWER}"}) is None


def test_a_prompt_beside_whole_conversations_is_read_too():
    whole = {"prompt": QUESTION, "chosen": ROUND, "rejected": [ROUND[0], {"role": "assistant", "content": WORSE}]}
    assert preference_of("f, row 1", whole) == (ROUND[:1], ROUND[1]["content"], WORSE)


def test_two_answers_to_one_question_never_stand_on_both_sides(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [
        {"role": "system", "content": "你是助手"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
    ]
    rows = []
    for number in range(40):
        turns[1]["content"], turns[2]["content"] = f"问{number // 4}", f"答{number}"
        rows.append(json.dumps({"messages": turns}, ensure_ascii=False))
    file.write_text("\n".join(rows), encoding="utf-8")
    kept, heldout = read_split([file], None, (file, file), conversation_of, None, seed=1)
    asked = [{row[1]["content"] for row in side} for side in (kept, heldout)]
    assert len(asked[0]) == 9 and len(asked[1]) == 1 and not asked[0] & asked[1]
    assert len(kept) + len(heldout) == 40


@pytest.mark.parametrize(
    "record, told",
    [
        ({"prompt": ROUND, "chosen": ANSWER, "rejected": WORSE}, "end with user"),
        ({"prompt": QUESTION, "chosen": ROUND, "rejected": WORSE}, "one assistant turn"),
        ({"prompt": QUESTION, "chosen": [], "rejected": WORSE}, "one assistant turn"),
        ({"prompt": QUESTION, "chosen": 3, "rejected": WORSE}, "int"),
        ({"chosen": ROUND, "rejected": [{"role": "user", "content": "别的？"}, ROUND[1]]}, "same conversation"),
    ],
)
def test_a_preference_that_cannot_be_read_is_refused_by_place(record, told):
    with pytest.raises(UserError, match=f"f, row 7.*{told}"):
        preference_of("f, row 7", record)


# everything at once


def test_blank_records_are_left_out_and_counted_aloud(tmp_path, capsys):
    as_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": " "}, {"text": "二"}, {"text": None}])
    assert read_all([tmp_path], document_of) == ["一", "二"]
    printed = capsys.readouterr().out
    assert "of equal answers: 2" in printed
    assert "a.jsonl" in printed and "row 2" in printed


def test_nothing_is_said_where_no_record_is_blank(tmp_path, capsys):
    assert len(read_all([as_jsonl(tmp_path / "a.jsonl", ROWS)], document_of)) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name, text", [("a.jsonl", '{"text": " "}\n'), ("b.txt", ""), ("c.json", "[]"), ("d.csv", "text\n")]
)
def test_a_source_with_no_usable_record_is_an_error_that_names_it(tmp_path, name, text):
    with pytest.raises(UserError, match=f"no usable record in .*{name}"):
        read_all([write(tmp_path / name, text)], document_of)


def test_the_row_of_a_fault_counts_from_one_in_its_own_file(tmp_path):
    as_jsonl(tmp_path / "a.jsonl", ROWS)
    as_jsonl(tmp_path / "b.jsonl", [ROWS[0], {"body": "x"}])
    with pytest.raises(UserError, match=r"b\.jsonl.*row 2\b.*body"):
        read_all([tmp_path], document_of)

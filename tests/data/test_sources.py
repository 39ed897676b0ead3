import csv
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from med_model.data.sources import find_files, read_records
from med_model.errors import UserError

ROWS = [{"text": "高血压要少盐。", "topic": "高血压"}, {"text": "发烧多喝水。\n注意休息。", "topic": "发热"}]


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


# Tests of the file formats


@pytest.mark.parametrize("write_as", [as_json, as_jsonl, as_csv, as_parquet], ids=lambda write_as: write_as.__name__)
def test_every_format_gives_the_same_rows(tmp_path, write_as):
    file = write_as(tmp_path / f"rows.{write_as.__name__.removeprefix('as_')}", ROWS)
    assert records(file) == ROWS


def test_a_json_file_may_be_one_line_or_a_single_record(tmp_path):
    assert records(write(tmp_path / "array.json", json.dumps(ROWS))) == ROWS
    assert records(write(tmp_path / "object.json", json.dumps(ROWS[0], indent=2))) == ROWS[:1]
    assert records(write(tmp_path / "compact.json", json.dumps(ROWS[0]))) == ROWS[:1]


def test_a_json_file_may_hold_one_object_per_line(tmp_path):
    assert records(as_jsonl(tmp_path / "as_on_the_hub.json", ROWS)) == ROWS


def test_blank_lines_in_jsonl_are_no_records(tmp_path):
    text = "\n" + json.dumps(ROWS[0]) + "\r\n\r\n   \n" + json.dumps(ROWS[1])
    assert records(write(tmp_path / "gaps.jsonl", text)) == ROWS


def test_txt_documents_are_separated_by_blank_lines(tmp_path):
    text = "\n\n高血压要少盐。\n每天量血压。\n \n\n发烧多喝水。\n"
    assert records(write(tmp_path / "a.txt", text)) == [
        {"text": "高血压要少盐。\n每天量血压。"},
        {"text": "发烧多喝水。"},
    ]


def test_txt_may_have_windows_line_ends(tmp_path):
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


def test_a_csv_field_may_be_longer_than_the_default_limit_of_csv(tmp_path):
    long = [{"text": "血" * 200_000, "topic": "长"}]
    assert records(as_csv(tmp_path / "long.csv", long)) == long


# Tests of find_files


def test_find_files_searches_folders_at_every_depth_in_a_fixed_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.jsonl", "b/a.txt", "a.csv"):
        write(tmp_path / name, "text\n一\n")
    write(tmp_path / "README.md", "not data")
    assert find_files([tmp_path]) == [tmp_path / name for name in ("a.csv", "b/a.txt", "c.jsonl")]


def test_find_files_expands_globs_and_keeps_the_order_of_the_sources(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "z.txt"):
        write(tmp_path / name, "x")
    assert find_files([str(tmp_path / "*.jsonl")]) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert tmp_path / "deep/c.jsonl" in find_files([str(tmp_path / "**/*.jsonl")])
    assert find_files([tmp_path / "z.txt", tmp_path / "a.jsonl"]) == [tmp_path / "z.txt", tmp_path / "a.jsonl"]


@pytest.mark.parametrize("missing", ["nowhere.jsonl", "*.parquet", "empty"])
def test_find_files_names_a_source_without_data(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"No data in .*{missing.replace('*', '[*]')}"):
        find_files([str(tmp_path / missing)])


def test_find_files_names_a_file_of_an_unknown_format(tmp_path):
    write(tmp_path / "words.docx", "x")
    with pytest.raises(UserError, match="words.docx.*\\.jsonl"):
        find_files([str(tmp_path / "words.docx")])


def hub_error(address: str, cache) -> str:
    """Call `find_files` without a network. Return the error text that the user sees.

    huggingface_hub reads its settings only when it is imported, so the call runs in a new process.
    """
    code = "import sys; from med_model.command import run; from med_model.data.sources import find_files; "
    code += "run(lambda: find_files(sys.argv[1:]))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_find_files_names_the_mirror_setting_when_a_download_fails(tmp_path):
    error = hub_error("hf://datasets/shibing624/medical/pretrain/train.json", tmp_path)
    assert "shibing624/medical/pretrain/train.json" in error
    assert "HF_ENDPOINT" in error


def test_find_files_names_an_impossible_hub_address_in_one_line(tmp_path):
    assert "hf://datasets/a b/c d/e.json" in hub_error("hf://datasets/a b/c d/e.json", tmp_path)


def test_find_files_refuses_a_hub_address_without_a_file():
    with pytest.raises(UserError, match="hf://datasets/shibing624/medical is .* Write hf://datasets/OWNER/NAME/FILE"):
        find_files(["hf://datasets/shibing624/medical"])


# Tests of errors in the files


def test_read_records_names_the_line_that_is_not_json(tmp_path):
    file = write(tmp_path / "bad.jsonl", '{"text": "一"}\n\n{"text": "二"\n')
    with pytest.raises(UserError, match=r"bad\.jsonl.*line 3\b"):
        records(file)


def test_read_records_names_the_line_that_breaks_a_json_array(tmp_path):
    with pytest.raises(UserError, match=r"bad\.json, line 3\b"):
        records(write(tmp_path / "bad.json", '[\n{"text": "一"},\n{"text" "二"}\n]'))


@pytest.mark.parametrize("name, text", [("a.jsonl", '{"text": "一"}\n["二"]\n'), ("a.json", '[{"text": "一"}, "二"]')])
def test_read_records_names_file_and_row_of_a_record_that_is_no_object(tmp_path, name, text):
    with pytest.raises(UserError, match=rf"{name}.*row 2\b.*二"):
        records(write(tmp_path / name, text))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_read_records_asks_for_utf8_when_a_file_has_another_encoding(tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "高血压要少盐"}'.encode("gb18030"))
    with pytest.raises(UserError, match=f"{name}.*UTF-8"):
        records(tmp_path / name)


def test_read_records_names_a_parquet_file_that_is_something_else(tmp_path):
    with pytest.raises(UserError, match="broken.parquet"):
        records(write(tmp_path / "broken.parquet", "version https://git-lfs.github.com/spec/v1\n"))


def test_read_records_names_the_csv_row_with_more_fields_than_the_header(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv.*row 2\b"):
        records(write(tmp_path / "a.csv", "text,topic\n好,一\n要少盐,多吃菜,二\n"))


def test_sources_is_imported_without_torch_and_trl():
    code = "import sys; import med_model.data.sources; print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr

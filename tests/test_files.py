import json

import pytest

from med_model.errors import UserError
from med_model.files import check_json_target, read_json, read_yaml, write_beside, write_json


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_read_yaml_returns_the_mapping_and_finds_files_of_the_project_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("问: 答\nlist: [1, 2]\n", encoding="utf-8")
    assert read_yaml("a.yaml", "--config") == {"问": "答", "list": [1, 2]}
    assert read_yaml("configs/demo/sft.yaml", "--config")


@pytest.mark.parametrize(
    "content, message",
    [("- a\n- b\n", "--expected .*bad.yaml .*list"), ("a: [1", "Cannot read --expected .*bad.yaml")],
)
def test_read_yaml_names_the_option_and_the_file_that_it_cannot_use(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_yaml(str(tmp_path / "bad.yaml"), "--expected")


def test_read_yaml_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no file nowhere.yaml.*--config"):
        read_yaml("nowhere.yaml", "--config")


def test_read_json_reads_what_write_json_wrote(tmp_path):
    value = {"答案": [1, 2.5, None], "n": "120"}
    write_json(str(tmp_path / "a.json"), value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content", [b'{"a": 1', "答案".encode("gb18030"), None], ids=["bad JSON", "not UTF-8", "missing"]
)
def test_read_json_names_a_file_that_is_damaged_or_missing(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match="bad.json"):
        read_json(tmp_path / "bad.json")


def test_check_json_target_wants_an_existing_folder(tmp_path):
    check_json_target(None)
    check_json_target(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match="--json .*nowhere"):
        check_json_target(str(tmp_path / "nowhere" / "a.json"))


def test_write_beside_replaces_a_file_only_at_the_end(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with write_beside(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old" and partial.parent == tmp_path
    assert target.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_write_beside_replaces_a_whole_directory(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "leftover.txt").write_text("old")
    with write_beside(target) as partial:
        partial.mkdir()
        (partial / "weights.txt").write_text("new")
    assert names(target) == ["weights.txt"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("directory", [True, False])
def test_write_beside_keeps_the_old_content_after_an_error(tmp_path, directory):
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_beside(target) as partial:
        if directory:
            partial.mkdir()
            partial = partial / "a.txt"
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and names(tmp_path) == ["target"]


def test_write_json_leaves_the_old_file_if_the_value_cannot_be_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1} and names(tmp_path) == ["a.json"]

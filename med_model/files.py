"""Files that the project reads and writes for itself: YAML, JSON, and whole directories put in place at once."""

import json
import shutil
from pathlib import Path

import yaml

from med_model.errors import UserError
from med_model.paths import ROOT


def read_yaml(name: str, option: str) -> dict:
    """The mapping in the YAML file that `option` names. UserError where there is none."""
    file = Path(name) if Path(name).exists() else ROOT / name  # looked up as find_files does
    if not file.is_file():
        raise UserError(f"文件不存在/no file {name}: give {option} FILE.yaml")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # TrlParser would take the locale's encoding
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"文件读不懂/cannot read {option} {name}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"应为 名称: 值/{option} {name} must map names to values, found {type(content).__name__}")
    return content


def check_json_target(file: str | None) -> None:
    """UserError where --json names a file in a folder that does not exist: before the work, not after it."""
    if file and not Path(file).resolve().parent.is_dir():
        raise UserError(f"没有这个文件夹/no folder for --json {file}: make it first")


def write_json(file: str, result: dict) -> None:
    """Writes beside, then renames: there is never half a result under the name."""
    partial = Path(f"{file}.partial")
    partial.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def replace_directory(partial: Path, directory: Path) -> None:
    """Puts the finished `partial` in the place of `directory`; there is never half a directory under its name."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)

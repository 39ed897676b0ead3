"""Read YAML and JSON files. Write a file or directory under a temporary name, and rename it when it is complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from med_model.errors import UserError
from med_model.language import tr
from med_model.paths import ROOT


def read_yaml(name: str, option: str) -> dict:
    """Return the mapping in the YAML file `name`, which the user gave with `option`, for example with --config.

    A relative name is looked up in the working directory, then in the folder of the project.
    Raise UserError if the file is missing, is not YAML in UTF-8, or holds something other than a mapping.
    """
    file = Path(name) if Path(name).exists() else ROOT / name
    if not file.is_file():
        raise UserError(
            tr("There is no file {name}. Give {option} the name of a YAML file.", name=name, option=option)
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            tr("Cannot read {option} {name}: {problem}", option=option, name=name, problem=error)
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(
            tr("{option} {name} must map names to values, found {kind}.", option=option, name=name, kind=kind)
        )
    return content


def read_json(file: str | Path) -> Any:
    """Read the JSON value in a file that a command of this project wrote.

    Raise UserError if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:  # ValueError: bad JSON or bad UTF-8
        raise UserError(
            tr("Cannot read {file}: {problem}. Run the command that writes it again.", file=file, problem=error)
        ) from error


def check_json_target(file: str | None) -> None:
    """Raise UserError if the folder of the --json file does not exist. Do nothing if `file` is None.

    Scripts call this function before their measurements, so that the error comes early.
    """
    if file and not Path(file).resolve().parent.is_dir():
        raise UserError(tr("There is no folder for --json {file}. Make the folder first.", file=file))


def write_json(file: str | Path, value: object) -> None:
    """Write `value` to `file` as indented JSON. If writing fails, an old file stays as it was."""
    with write_beside(file) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def write_beside(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `target`. At the end, rename the temporary path to `target`.

    The `with` block writes a file or a directory to the temporary path. So `target` is never half written. After an
    error in the block, `target` is as it was before, and the temporary path is removed.
    """
    target = Path(target)
    # The process id is in the name: two runs that write the same target must not share a temporary path.
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _replace_directory(partial, target)
        else:
            partial.replace(target)
    finally:
        _remove(partial)


def _replace_directory(partial: Path, directory: Path) -> None:
    """Rename the finished directory `partial` to `directory`. Delete the directory that had this name before."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

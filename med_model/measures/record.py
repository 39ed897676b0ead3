"""Make and check records. A record is a JSON file with the results of a run.

Each file in results/, and each file that a command writes for --json, is a record with this schema:

    {"command": ..., "commit": ..., "date": ..., "machine": ..., "versions": {library: version}, "data": [...],
     "figures": {group: {measure: {"value": ..., "low": ..., "high": ..., "n": ...}}}}

A group has, for example, the figures of one model, or the changes from one model to the next. A record may have
more keys, for example `answers`. `low`, `high` and `n` are null if they are not known.
"""

import hashlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from med_model import paths
from med_model.data.sources import find_files
from med_model.measures.interval import Figure
from med_model.model.directory import LIBRARIES

TYPES: dict[str, type | tuple[type, ...]] = {
    "command": str,
    "commit": (str, type(None)),
    "date": str,
    "machine": str,
    "versions": dict,
    "data": list,
    "figures": dict,
}
NUMBER, NUMBER_OR_NULL = (int, float), (int, float, type(None))
FIGURE_TYPES = {"value": NUMBER, "low": NUMBER_OR_NULL, "high": NUMBER_OR_NULL, "n": (int, type(None))}
SOURCE_TYPES = {"source": str, "sha256": str, "files": int}
DIGEST_DIGITS = 16  # a record has only this many of the 64 hexadecimal digits of a sha256


def machine() -> str:
    """Return a text with the processor, the number of threads, the version of torch, and the platform."""
    processor = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}"


def as_typed(text: str) -> str:
    """Change an absolute path inside the project into a path relative to the project. Return other texts unchanged."""
    return paths.shown(text) if Path(text).is_relative_to(paths.ROOT) else text


def options(arguments: object) -> dict:
    """Return {option: value} of a dataclass of options. Paths in the values are changed as in `as_typed`."""
    typed = {}
    for name, value in asdict(arguments).items():
        value = as_typed(value) if isinstance(value, str) else value
        typed[name] = [as_typed(text) for text in value] if isinstance(value, list) else value
    return typed


def command_line() -> str:
    """Return the command of this process as a user would type it."""
    module = sys.modules["__main__"].__spec__  # `module` is None if the process was not started by `python -m`
    program = ["-m", module.name.removesuffix(".__main__")] if module else [paths.shown(sys.argv[0])]
    return shlex.join(["python", *program, *map(as_typed, sys.argv[1:])])


def commit() -> str | None:
    """Return the hash of the project's git commit. Return None if git or the repository is missing or git fails."""
    # The project may be unpacked inside another repository. Then git would return the commit of the other repository.
    if not (paths.ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=paths.ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def described(source: str) -> dict[str, str | int]:
    """Return the entry of a source in the `data` of a record: name, first digits of the sha256, number of files.

    The sha256 covers the bytes of all files, in the order of `find_files`. Raise UserError as `find_files` does.
    """
    files = find_files([source])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return {"source": as_typed(source), "sha256": digest.hexdigest()[:DIGEST_DIGITS], "files": len(files)}


def as_json(figures: dict[str, Figure]) -> dict[str, dict[str, float]]:
    """Return the figures as dicts, for JSON: {measure: {"value": ..., "low": ..., "high": ..., "n": ...}}."""
    return {key: shown._asdict() for key, shown in figures.items()}


def new_record(sources: Sequence[str], figures: dict[str, dict[str, Figure]], **extra: object) -> dict:
    """Return the record of this run: its command, machine, versions, data and figures.

    sources: files, folders or globs, as for --data. figures: {group: {measure: figure}}. A group is, for example, one
    model. extra: more keys of the record. Raise UserError as `find_files` does, and ValueError as `check_record` does.
    """
    record = {
        "command": command_line(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "data": [described(str(source)) for source in sources],
        "figures": {group: as_json(group_figures) for group, group_figures in figures.items()},
        **extra,
    }
    check_record(record)
    return record


def _check_types(values: object, types: dict, name: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no object but {values!r}")
    for key, wanted in types.items():
        if key not in values:
            raise ValueError(f"{name} has no key {key!r}")
        if not isinstance(values[key], wanted) or isinstance(values[key], bool):
            raise ValueError(f"{name}: {key!r} is {values[key]!r}, of type {type(values[key]).__name__}")


def check_record(record: object) -> None:
    """Raise ValueError if a record does not have the schema at the top of this file, or if `low` is above `high`.

    The error names the part of the record that is wrong.
    """
    _check_types(record, TYPES, "the record")
    try:
        time.strptime(record["date"], "%Y-%m-%d")
    except ValueError as error:
        raise ValueError(f"the record: 'date' is {record['date']!r}, want YYYY-MM-DD") from error
    for source in record["data"]:
        if not isinstance(source, str):  # an entry is only a text in a record copied by hand (docs/en/measures.md)
            _check_types(source, SOURCE_TYPES, "an entry of 'data'")
    for library, number in record["versions"].items():
        _check_types({library: number}, {library: str}, "'versions'")
    for group, measures in record["figures"].items():
        if not isinstance(measures, dict):
            raise ValueError(f"'figures' {group!r} is no object but {measures!r}")
        for key, shown in measures.items():
            name = f"'figures' {group!r} {key!r}"
            _check_types(shown, FIGURE_TYPES, name)
            if unknown := shown.keys() - FIGURE_TYPES.keys():
                raise ValueError(f"{name} has the unknown key {unknown.pop()!r}")
            if shown["low"] is not None and shown["high"] is not None and shown["low"] > shown["high"]:
                raise ValueError(f"{name}: 'low' {shown['low']} is above 'high' {shown['high']}")

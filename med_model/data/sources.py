"""Find data files and read them, one record at a time.

A record is a dict with the fields of one row. The origin of a record is a text that names its file and row. Every
error about a record begins with the origin.
"""

import csv
import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from med_model.errors import UserError
from med_model.language import tr
from med_model.paths import ROOT

FORMATS = (".json", ".jsonl", ".csv", ".parquet", ".txt")

HUB_PREFIX = "hf://datasets/"  # start of a Hugging Face address: hf://datasets/OWNER/NAME/path/in/the/repository.json


def find_files(sources: Iterable[str | Path]) -> list[Path]:
    """Return the data files of the sources. A source is a file, a folder, a glob or an hf://datasets/ address.

    The order of the sources is kept, and the files of one source are sorted. A relative path is looked up in the
    working directory, then in the project, so that a script finds the bundled files from any folder.
    Raise UserError for a source without data files, an unknown format, an incomplete address or a failed download.
    """
    files: list[Path] = []
    for source in map(str, sources):
        found = [_download(source)] if source.startswith(HUB_PREFIX) else _local(source) or _local(str(ROOT / source))
        if not found:
            raise UserError(
                tr(
                    "No data in {source}. --data takes files, folders and globs ({formats}), "
                    "or {prefix}OWNER/NAME/FILE.",
                    source=source,
                    formats=", ".join(FORMATS),
                    prefix=HUB_PREFIX,
                )
            )
        if unknown := [path for path in found if path.suffix.lower() not in FORMATS]:
            formats = ", ".join(FORMATS)
            raise UserError(
                tr("{file} has an unknown format. Convert it to one of {formats}.", file=unknown[0], formats=formats)
            )
        files += found
    return files


def _local(source: str) -> list[Path]:
    if Path(source).is_file():
        return [Path(source)]  # no glob here, because a glob reads [1] in a file name as a pattern
    if Path(source).is_dir():
        return [path for path in sorted(Path(source).rglob("*")) if path.suffix.lower() in FORMATS]
    return [Path(path) for path in sorted(glob.glob(source, recursive=True)) if Path(path).is_file()]


def _download(address: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = address.removeprefix(HUB_PREFIX).split("/", 2)
    if len(parts) < 3:
        raise UserError(
            tr("{address} is incomplete. Write {prefix}OWNER/NAME/FILE.", address=address, prefix=HUB_PREFIX)
        )
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2], repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            tr(
                "Cannot download {address} ({problem}). Check the network, or set a mirror such as "
                "HF_ENDPOINT=https://hf-mirror.com, or download the file yourself and pass its path.",
                address=address,
                problem=type(error).__name__,
            )
        ) from error


def read_records(files: Iterable[Path]) -> Iterator[tuple[str, dict]]:
    """Yield (origin, record) for each record of each file. The origin names the file and the row, counted from 1.

    In a .txt file, blank lines separate the records, and the only field of a record is `text`.
    Raise UserError for a file that is damaged or not UTF-8, and for a record that is not a JSON object.
    """
    for file in files:
        reader = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_txt}.get(file.suffix.lower(), _read_json)
        try:
            for row, record in enumerate(reader(file), 1):
                origin = _origin(file, row)
                if not isinstance(record, dict):
                    value = repr(str(record)[:40])
                    raise UserError(
                        tr("{origin}: expected an object with fields, found {value}.", origin=origin, value=value)
                    )
                yield origin, record
        except UnicodeDecodeError as error:
            raise UserError(
                tr(
                    "{file} is not UTF-8 ({problem} at byte {byte}). Save it as UTF-8.",
                    file=file,
                    problem=error.reason,
                    byte=error.start,
                )
            ) from error


def _origin(file: Path, row: int) -> str:
    return tr("{file}, row {row}", file=file, row=row)


def _read_json(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8-sig") as lines:
        first = lines.readline()
        lines.seek(0)
        if first.lstrip().startswith("[") or first.strip() == "{":
            try:  # the whole file is one JSON value: a list of records or a single record
                value = json.load(lines)
            except json.JSONDecodeError as error:
                raise _not_json(file, error.lineno, error) from error
            yield from value if isinstance(value, list) else [value]
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise _not_json(file, number, error) from error


def _not_json(file: Path, line: int, error: json.JSONDecodeError) -> UserError:
    return UserError(
        tr(
            "{file}, line {line}: this is not JSON ({problem}). Correct the line.",
            file=file,
            line=line,
            problem=error.msg,
        )
    )


def _read_csv(file: Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # allows long texts; on Windows a C long cannot hold a larger limit
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row, record in enumerate(csv.DictReader(lines), 1):
            if None in record:  # the row has more fields than the header: a text with a comma is not in quotes
                raise UserError(
                    tr(
                        "{origin}: this row has more fields than the header, from {field} on. "
                        "Put a text with commas in quotes.",
                        origin=_origin(file, row),
                        field=repr(record[None][0][:40]),
                    )
                )
            yield record


def _read_parquet(file: Path) -> Iterator[dict]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            tr("{file} is not a Parquet file ({problem}). Download it again.", file=file, problem=error)
        ) from error


def _read_txt(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8-sig") as lines:
        document: list[str] = []
        for line in lines:
            if line.strip():
                document.append(line.rstrip("\n"))
            elif document:
                yield {"text": "\n".join(document)}
                document = []
        if document:
            yield {"text": "\n".join(document)}

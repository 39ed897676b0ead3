"""Files of data: how they are found and read, one record at a time.

A record is a dict as it stands in the file; `where` names its file and row in every error.
"""

import csv
import glob
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from med_model.errors import UserError
from med_model.paths import ROOT

FORMATS = (".json", ".jsonl", ".csv", ".parquet", ".txt")

HUB_PREFIX = "hf://datasets/"  # hf://datasets/OWNER/NAME/path/in/the/repository.json


def find_files(sources: Iterable[str | Path]) -> list[Path]:
    """The data files that files, folders, globs and hf://datasets/ addresses stand for, in a fixed order.

    A relative path is looked up from the working directory, then from the project: the bundled files have one name
    wherever a script is started.
    """
    files: list[Path] = []
    for source in map(str, sources):
        found = [_download(source)] if source.startswith(HUB_PREFIX) else _local(source) or _local(str(ROOT / source))
        if not found:
            raise UserError(
                f"没有找到数据/no data in {source}: --data takes files, folders, globs ({', '.join(FORMATS)}) "
                f"or {HUB_PREFIX}OWNER/NAME/FILE"
            )
        if unknown := [path for path in found if path.suffix.lower() not in FORMATS]:
            raise UserError(f"不认识的格式/unknown format {unknown[0]}: convert it to one of {', '.join(FORMATS)}")
        files += found
    return files


def _local(source: str) -> list[Path]:
    if Path(source).is_file():
        return [Path(source)]  # before the glob, which would read [1] in a name as a pattern
    if Path(source).is_dir():
        return [path for path in sorted(Path(source).rglob("*")) if path.suffix.lower() in FORMATS]
    return [Path(path) for path in sorted(glob.glob(source, recursive=True)) if Path(path).is_file()]


def _download(address: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = address.removeprefix(HUB_PREFIX).split("/", 2)
    if len(parts) < 3:
        raise UserError(f"地址不完整/incomplete address {address}: write {HUB_PREFIX}OWNER/NAME/FILE")
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2], repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"下载失败/cannot download {address} ({type(error).__name__}): check the network or set a mirror, "
            "e.g. HF_ENDPOINT=https://hf-mirror.com, or download the file and pass its path"
        ) from error


def read_records(files: Iterable[Path]) -> Iterator[tuple[str, dict]]:
    """Yields (where, record) from each file, one at a time; a .txt file gives a record `text` a paragraph block."""
    for file in files:
        reader = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_txt}.get(file.suffix.lower(), _read_json)
        try:
            for row, record in enumerate(reader(file), 1):
                if not isinstance(record, dict):
                    raise UserError(f"{file}, 第{row}行/row {row}: {str(record)[:40]!r} is not an object with fields")
                yield f"{file}, 第{row}行/row {row}", record
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error


def _read_json(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8-sig") as lines:
        first = lines.readline()
        lines.seek(0)
        if first.lstrip().startswith("[") or first.strip() == "{":
            try:  # one JSON value over the whole file: a list of records, or a single one
                value = json.load(lines)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}): mend that line") from error
            yield from value if isinstance(value, list) else [value]
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{file}, 第{number}行/line {number}: not JSON ({error.msg}): mend that line"
                    ) from error


def _read_csv(file: Path) -> Iterator[dict]:
    csv.field_size_limit(
        sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1
    )  # the limit is a C long: 32 bits on Windows
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row, record in enumerate(csv.DictReader(lines), 1):
            if None in record:  # more fields than the header: a text with a comma that is not in quotes
                extra = record[None][0][:40]
                raise UserError(f"{file}, 第{row}行/row {row}: more fields than the header, from {extra!r}: quote it")
            yield record


def _read_parquet(file: Path) -> Iterator[dict]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a Parquet file ({error}): fetch it again") from error


def _read_txt(file: Path) -> Iterator[dict]:
    """Documents are separated by blank lines."""
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

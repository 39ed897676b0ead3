"""How files of text, conversations and preferences are found, read and checked.

A record is a dict as it stands in the file; `where` names its file and row in every error.
"""

import csv
import glob
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from med_model.command import UserError
from med_model.paths import ROOT

FORMATS = (".json", ".jsonl", ".csv", ".parquet", ".txt")
HUB_PREFIX = "hf://datasets/"  # hf://datasets/OWNER/NAME/path/in/the/repository.json
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

HELDOUT_SHARE, MAX_HELDOUT = 0.02, 500  # of the user's own data, where no held-out file is given

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Choice(NamedTuple):
    """A multiple-choice item."""

    question: str
    options: list[str]
    answer: int  # the place of the right one among the options


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


def _field(record: dict, name: str, where: str) -> str:
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` is a {type(value).__name__}, not a text: {str(value)[:40]!r}")
    return value.strip()


def _has(record: dict, *names: str) -> bool:
    return all(name in record for name in names)


def _wrong_shape(record: dict, where: str, wanted: str) -> UserError:
    return UserError(f"{where}: found the fields {', '.join(record) or '(none)'}; want {wanted}")


def document_of(where: str, record: dict) -> str:
    """The text of a pre-training record (`text`); empty where it is blank."""
    if not _has(record, "text"):
        raise _wrong_shape(record, where, "`text`")
    return _field(record, "text", where)


def _messages(value: object, where: str, role: str = "role", content: str = "content") -> list[Message]:
    messages = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict) or not _has(turn, role, content):
            raise UserError(f"{where}: a turn needs `{role}` and `{content}`: {str(turn)[:60]!r}")
        if not isinstance(turn[role], str) or turn[role] not in SHAREGPT_ROLES:
            raise UserError(f"{where}: unknown role {turn[role]!r}; want one of {', '.join(SHAREGPT_ROLES)}")
        messages.append({"role": SHAREGPT_ROLES[turn[role]], "content": _field(turn, content, where)})
    return messages


def _question(record: dict, name: str, where: str) -> list[Message]:
    """The turns of a question given as a text or as messages."""
    if isinstance(record[name], list):
        return _messages(record[name], where)
    return [{"role": "user", "content": _field(record, name, where)}]


def _answer(value: object, where: str) -> str:
    """The text of an answer given as a string or as a list with one assistant message."""
    if isinstance(value, list):
        messages = _messages(value, where)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise UserError(
                f"{where}: an answer in messages is one assistant turn, found {[m['role'] for m in messages]}"
            )
        return messages[0]["content"]
    return _field({"answer": value}, "answer", where)


def _check_turns(messages: list[Message], where: str, last: str) -> list[Message]:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if not turns or turns != wanted or turns[-1] != last:
        raise UserError(f"{where}: turns must alternate from user and end with {last}, found {roles}")
    return messages


def conversation_of(where: str, record: dict) -> list[Message]:
    """The turns of an SFT record, ending with the assistant; an empty list where a question or answer is blank."""
    if _has(record, "messages") and record["messages"]:
        messages = _messages(record["messages"], where)
    elif _has(record, "conversations") and record["conversations"]:
        messages = _messages(record["conversations"], where, "from", "value")
    elif _has(record, "instruction", "output"):
        parts = [_field(record, "instruction", where), _field({"input": "", **record}, "input", where)]
        question = {"role": "user", "content": "\n".join(filter(None, parts))}
        messages = [question, {"role": "assistant", "content": _field(record, "output", where)}]
    elif _has(record, "prompt", "completion"):
        answer = {"role": "assistant", "content": _answer(record["completion"], where)}
        messages = [*_question(record, "prompt", where), answer]
    else:
        raise _wrong_shape(
            record, where, "instruction/input/output, prompt/completion, messages, or conversations (ShareGPT)"
        )
    _check_turns(messages, where, "assistant")
    return messages if all(m["content"] for m in messages) else []


def texts_of(where: str, record: dict) -> list[str]:
    """The text of a document, or of each turn of a conversation: for what learns from any text."""
    texts = (
        [document_of(where, record)]
        if _has(record, "text")
        else [m["content"] for m in conversation_of(where, record)]
    )
    return [text for text in texts if text]


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def preference_of(where: str, record: dict) -> tuple[list[Message], str, str] | None:
    """(prompt turns, chosen answer, rejected answer) of a DPO record; None where one is blank, or the answers are one.

    TRL's implicit form is read too: whole conversations in `chosen` and `rejected`, with or without their `prompt`.
    """
    if _has(record, "question", "response_chosen", "response_rejected"):
        prompt = _question(record, "question", where)
        chosen, rejected = _answer(record["response_chosen"], where), _answer(record["response_rejected"], where)
    elif _has(record, "chosen", "rejected") and all(_is_conversation(record[side]) for side in ("chosen", "rejected")):
        good, bad = _messages(record["chosen"], where), _messages(record["rejected"], where)
        if good[:-1] != bad[:-1]:
            raise UserError(f"{where}: `chosen` and `rejected` must be the same conversation up to the last turn")
        prompt, chosen, rejected = good[:-1], _answer(good[-1:], where), _answer(bad[-1:], where)
    elif _has(record, "prompt", "chosen", "rejected"):
        prompt = _question(record, "prompt", where)
        chosen, rejected = _answer(record["chosen"], where), _answer(record["rejected"], where)
    else:
        raise _wrong_shape(record, where, "question/response_chosen/response_rejected or prompt/chosen/rejected")
    _check_turns(prompt, where, "user")
    if not (all(m["content"] for m in prompt) and chosen and rejected):
        return None
    return None if chosen == rejected else (prompt, chosen, rejected)


def choice_of(where: str, record: dict) -> Choice:
    """A multiple-choice item (`question`, `options`, `answer`: the place of the right one, from 0)."""
    if not _has(record, "question", "options", "answer"):
        raise _wrong_shape(record, where, "`question`, `options` and `answer`")
    options, answer = record["options"], record["answer"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        raise UserError(f"{where}: `options` must be two texts or more, found {str(options)[:60]!r}")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise UserError(f"{where}: `answer` is the place of the right option, 0 to {len(options) - 1}, not {answer!r}")
    return Choice(_field(record, "question", where), options, answer)


def read_all(sources: Iterable[str | Path], read_one: Callable, limit: int | None = None) -> list:
    """The (first `limit`) records of the sources through `read_one(where, record)`; blank ones are counted aloud."""
    kept, blank = [], []
    for where, record in itertools.islice(read_records(find_files(sources)), limit):
        value = read_one(where, record)
        if value:
            kept.append(value)
        else:
            blank.append(where)
    if blank:
        print(f"空白或两答相同的记录已跳过/left out, blank or of equal answers: {len(blank)} (the first: {blank[0]})")
    if not kept:
        raise UserError(f"没有可用的数据/no usable record in {', '.join(map(str, sources))}")
    return kept


def _group(record: str | list | tuple) -> str:
    """What must not stand on both sides of a split: a document, a pair's prompt, a conversation's first question."""
    if isinstance(record, list):
        return next(message["content"] for message in record if message["role"] == "user")
    return str(record[0]) if isinstance(record, tuple) else record


def read_split(
    data: list[str] | None,
    eval_data: list[str] | None,
    bundled: tuple[Path, Path],
    read_one: Callable,
    limit: int | None,
    seed: int,
) -> tuple[list, list]:
    """(training records, held-out records) of the user's data, or of the bundled (training, held-out) files.

    Without `eval_data` a HELDOUT_SHARE of the user's own records is split off: by document, or by question, so that
    two answers to one question never stand on both sides.
    """
    records = read_all(data or [bundled[0]], read_one, limit)
    if eval_data or not data:
        return records, read_all(eval_data or [bundled[1]], read_one)
    groups = [_group(record) for record in records]
    distinct = sorted(set(groups))
    if len(distinct) < 2:
        raise UserError(
            "只有一份数据/one record cannot be split: give more --data, or a held-out file with --eval_data"
        )
    count = min(MAX_HELDOUT, max(1, round(len(distinct) * HELDOUT_SHARE)))
    heldout = set(random.Random(seed).sample(distinct, count))
    sides = [group in heldout for group in groups]
    kept = [record for record, out in zip(records, sides, strict=True) if not out]
    return kept, [record for record, out in zip(records, sides, strict=True) if out]

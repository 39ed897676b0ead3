"""All records of the sources, and a part of them held out."""

import itertools
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from med_model.data.sources import find_files, read_records
from med_model.errors import UserError

HELDOUT_SHARE, MAX_HELDOUT = 0.02, 500  # of the user's own data, where no held-out file is given


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

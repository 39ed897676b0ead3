"""Read all records of the sources, and hold out a part of them."""

import random
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from med_model.data.sources import find_files, read_records
from med_model.errors import UserError
from med_model.language import tr
from med_model.screen import say

HELDOUT_SHARE, MAX_HELDOUT = 0.02, 500  # share and largest number of questions or texts to hold out: see `read_split`


def read_all(sources: Iterable[str | Path], read_one: Callable, limit: int | None = None) -> list:
    """Return a list of `read_one(origin, record)` for the first `limit` records of the sources (None: all).

    The origin is a text that names the file and the row of a record. `read_one` returns an empty result for a blank
    record and for a pair with equal answers. Leave out these results, and print their number if there are any.
    Raise UserError if no record is left, and as `find_files`, `read_records` and `read_one` do.
    """
    kept, blank = [], []
    for origin, record in islice(read_records(find_files(sources)), limit):
        value = read_one(origin, record)
        if value:
            kept.append(value)
        else:
            blank.append(origin)
    if blank:
        say(
            tr(
                "Records left out because they are blank or have two equal answers: {count:,}. "
                "The first one is {origin}.",
                count=len(blank),
                origin=blank[0],
            )
        )
    if not kept:
        raise UserError(
            tr(
                "No usable record in {sources}: every record is blank, or there is none. Pass other files.",
                sources=", ".join(map(str, sources)),
            )
        )
    return kept


def read_split(
    data: list[str] | None,
    eval_data: list[str] | None,
    bundled: tuple[Path, Path],
    read_one: Callable,
    group_of: Callable,
    limit: int | None,
    seed: int,
) -> tuple[list, list]:
    """Return the training records and the held-out records.

    The training records come from `data`. Without `data` they come from bundled[0].
    The held-out records come from `eval_data`. Without `eval_data` and `data` they come from bundled[1].
    If only `data` is given, a part of its records is held out, in groups. A group is all records with the same
    `group_of(record)`, for example all answers to one question. HELDOUT_SHARE of the groups are held out: at least one
    group, and at most MAX_HELDOUT groups. `seed` decides which groups are held out.
    `limit` is the largest number of records to read from `data` or bundled[0], or None to read all.
    Raise UserError as `read_all` does, and if only `data` is given and all its records are one group.
    """
    records = read_all(data or [bundled[0]], read_one, limit)
    if eval_data or not data:
        return records, read_all(eval_data or [bundled[1]], read_one)
    groups = [group_of(record) for record in records]
    distinct = sorted(set(groups))
    if len(distinct) < 2:
        raise UserError(
            tr(
                "All records have the same question or text, so none can be held out. "
                "Give more --data, or a held-out file with --eval_data."
            )
        )
    count = min(MAX_HELDOUT, max(1, round(len(distinct) * HELDOUT_SHARE)))
    heldout = set(random.Random(seed).sample(distinct, count))
    sides = [group in heldout for group in groups]
    kept = [record for record, out in zip(records, sides, strict=True) if not out]
    return kept, [record for record, out in zip(records, sides, strict=True) if out]

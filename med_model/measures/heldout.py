"""Read held-out records: documents, questions, preference pairs and multiple choice."""

from collections.abc import Sequence
from typing import NamedTuple

from med_model import paths
from med_model.data.records import Choice, Pair, choice_of, document_of, pair_of
from med_model.data.split import read_all
from med_model.measures.answers import Question, question_of

BUNDLED = [str(file) for file in (paths.HELDOUT_TEXT, paths.EXAM, paths.HELDOUT_PAIRS, paths.CHOICES)]
READERS = {"texts": document_of, "questions": question_of, "pairs": pair_of, "choices": choice_of}


class Heldout(NamedTuple):
    """Held-out records by kind. The field names are the keys of READERS."""

    texts: Sequence[str] = ()
    questions: Sequence[Question] = ()
    pairs: Sequence[Pair] = ()
    choices: Sequence[Choice] = ()


def kind_of(record: dict) -> str:
    """Return the kind of a record: the key of READERS that fits its fields."""
    if "options" in record:
        return "choices"
    if record.keys() & {"response_chosen", "chosen"}:
        return "pairs"
    return "texts" if "text" in record else "questions"


def _read_record(origin: str, record: dict) -> tuple[str, object] | None:
    """Return the kind of a record and its content, read with READERS[kind]. Return None if the content is empty."""
    kind = kind_of(record)
    value = READERS[kind](origin, record)
    return (kind, value) if value else None


def read_heldout(sources: Sequence[str]) -> Heldout:
    """Return the held-out records of files, folders and globs. A file may contain records of several kinds.

    Raise UserError for a source without data, for a record with wrong fields, and if no usable record is left.
    """
    records: dict[str, list] = {kind: [] for kind in READERS}
    for kind, value in read_all(sources, _read_record):
        records[kind].append(value)
    return Heldout(**records)

"""Measure a baseline: programs that use the training rows, but no language model.

A lexical search answers the questions, and a naive Bayes classifier judges the preference pairs. A language model that
is worth its training is better than both.
"""

from collections.abc import Sequence
from typing import NamedTuple

from med_model import paths
from med_model.data.records import Pair, pair_of
from med_model.data.split import read_all
from med_model.measures.answer_measures import answer_measures
from med_model.measures.answers import AnsweredQuestion, judged
from med_model.measures.heldout import Heldout, kind_of
from med_model.measures.interval import Measure
from med_model.measures.lexical import LexicalSearch
from med_model.measures.naive_bayes import NaiveBayes
from med_model.measures.pair_measures import accuracies
from med_model.measures.taught import Taught, TaughtRow, taught_rows_of

BUNDLED_TRAINING = [str(folder) for folder in (paths.SFT_DATA, paths.DPO_DATA)]


class Training(NamedTuple):
    """What the measures use of the training rows.

    `taught` and `search` are made from SFT rows. They are None if there are no SFT rows. `style` is made from
    preference pairs. It is None if there are no pairs.
    """

    taught: Taught | None
    search: LexicalSearch | None
    style: NaiveBayes | None


def _read_record(origin: str, record: dict) -> list[TaughtRow] | Pair | None:
    return pair_of(origin, record) if kind_of(record) == "pairs" else taught_rows_of(origin, record)


def read_training(sources: Sequence[str]) -> Training:
    """Read SFT rows and preference pairs from files, folders and globs. Return what the measures use of them.

    Raise UserError for a source without data, for a record with wrong fields, and if no usable record is left.
    """
    values = read_all(sources, _read_record)
    pairs = [value for value in values if isinstance(value, Pair)]
    rows = [row for value in values if not isinstance(value, Pair) for row in value]
    return Training(
        taught=Taught(rows) if rows else None,
        search=LexicalSearch((row.question, row.answer) for row in rows) if rows else None,
        style=NaiveBayes([pair.chosen for pair in pairs], [pair.rejected for pair in pairs]) if pairs else None,
    )


def baseline_measures(training: Training, heldout: Heldout) -> tuple[dict[str, Measure], list[AnsweredQuestion]]:
    """Return {key: measure}, and the answers of the lexical search to the held-out questions.

    Measures that need a language model, such as bits per byte, are left out.
    """
    answered = []
    if training.search:
        answered = [
            judged(question, training.search.answer(question.text), True, training.taught)
            for question in heldout.questions
        ]
    measures = answer_measures(answered)
    if training.style and heldout.pairs:
        right = [training.style.score(pair.chosen) > training.style.score(pair.rejected) for pair in heldout.pairs]
        measures |= accuracies(heldout.pairs, right)
    return measures, answered

"""Read the answers that a model was trained on (taught answers), and find which of them a new answer comes from."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from med_model.data.records import conversation_of
from med_model.measures.sequences import sequences

SEQUENCE = 4  # characters per sequence: two answers are compared by their sequences
# A new answer comes from a taught answer if the taught answer has at least this share of the new answer's sequences.
SAME_SHARE = 0.6
SHORTEST = 8  # an answer of fewer characters is too short to tell where it comes from
RUN = re.compile(r"(.{1,2}?)\1+", re.DOTALL)  # one or two characters, directly repeated: xx, xxx, xyxy

RIGHT, SIBLING, OTHER_TOPIC, MIXTURE = "right", "sibling", "other topic", "mixture"


class TaughtRow(NamedTuple):
    """A question and its answer in the training data. Rows with the same `item` ask for the same thing."""

    question: str
    answer: str
    item: str
    topic: str


def taught_rows_of(origin: str, record: dict) -> list[TaughtRow]:
    """Return one row per answer of an SFT record. Raise UserError as `conversation_of` does.

    Return [] if a message is blank. The fields `item` (for the last answer) and `topic` are optional. An answer
    without an item gets its own text as its item. Without a topic, the item is also the topic.
    """
    messages = conversation_of(origin, record)
    turns = [message for message in messages if message["role"] != "system"]
    rows = []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        last = answer is turns[-1]
        item = str(record.get("item") or answer["content"]) if last else answer["content"]
        rows.append(TaughtRow(question["content"], answer["content"], item, str(record.get("topic") or item)))
    return rows


def _different(text: str) -> set[str]:
    """Remove the white space of a text, and return its different sequences of SEQUENCE characters."""
    return set(sequences("".join(text.split()), SEQUENCE))


class Taught:
    """The answers of the training data. `source` tells whether a generated answer comes from the right one of them."""

    def __init__(self, rows: Sequence[TaughtRow]):
        self.rows = rows
        self._items = defaultdict(set)  # {answer: set of (item, topic)}
        for row in rows:
            self._items[row.answer].add((row.item, row.topic))
        self._answers = list(self._items)
        self._holders = defaultdict(list)  # {sequence: the indices of the answers with this sequence}
        for index, answer in enumerate(self._answers):
            for sequence in _different(answer):
                self._holders[sequence].append(index)
        self._runs = {run for answer in self._answers for run in _runs(answer)}

    def source(self, answer: str, item: str, topic: str) -> str:
        """Return RIGHT, SIBLING, OTHER_TOPIC or MIXTURE for the answer to a question about `item` of `topic`.

        The best match is the taught answer that has the largest share of the 4-character sequences of `answer`.
        RIGHT: the best match was taught for `item`. SIBLING: it was taught for another item of `topic`.
        OTHER_TOPIC: it was taught for another topic. If several taught answers match equally well, return the first of
        these three that fits.
        MIXTURE: the largest share is less than SAME_SHARE, or `answer` has fewer than SHORTEST characters.
        """
        found = _different(answer)
        shares = Counter(index for sequence in found for index in self._holders.get(sequence, ()))
        if len("".join(answer.split())) < SHORTEST or not shares:
            return MIXTURE
        most = max(shares.values())
        if most < SAME_SHARE * len(found):
            return MIXTURE
        best = {pair for index, share in shares.items() if share == most for pair in self._items[self._answers[index]]}
        if item in {found_item for found_item, _ in best}:
            return RIGHT
        return SIBLING if topic in {found_topic for _, found_topic in best} else OTHER_TOPIC

    def stutters(self, answer: str) -> bool:
        """Return True if `answer` repeats one or two characters directly, as in 讲讲讲, but no taught answer does."""
        return not _runs(answer) <= self._runs


def _runs(text: str) -> set[str]:
    """Return the runs of a repeated character, or of two repeated characters: xx, xxx, xyxy."""
    return {found.group() for found in RUN.finditer(text)}

"""Tell good from bad answers by their characters alone. This baseline reads no question and knows no medicine.

Each bad answer has a flaw, for example a wrong fact. If the baseline often finds the bad answers with a certain flaw,
then this flaw shows in their style, and a model needs no knowledge to find them.
"""

import math
from collections import Counter
from collections.abc import Sequence

from med_model.measures.sequences import sequences

SIZES = (1, 2)  # lengths of the compared sequences, in characters


def _sequences(text: str) -> list[str]:
    return [sequence for size in SIZES for sequence in sequences(text, size)]


class NaiveBayes:
    """A multinomial naive Bayes classifier over the sequences of 1 and 2 characters, with add-one smoothing."""

    def __init__(self, good: Sequence[str], bad: Sequence[str]):
        """good, bad: the chosen and the rejected answers of the training pairs. An answer may occur several times."""
        counts = [Counter(sequence for text in texts for sequence in _sequences(text)) for texts in (good, bad)]
        known = counts[0].keys() | counts[1].keys()
        totals = [count.total() + len(known) for count in counts]
        self._weights = {
            sequence: math.log((counts[0][sequence] + 1) / totals[0] * totals[1] / (counts[1][sequence] + 1))
            for sequence in known
        }

    def score(self, answer: str) -> float:
        """Return log p(answer | good) - log p(answer | bad), in nats. Unknown sequences count 0."""
        return sum(self._weights.get(sequence, 0.0) for sequence in _sequences(answer))

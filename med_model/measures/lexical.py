"""Answer a question by a lexical search (BM25) over the training rows: a baseline that learns nothing.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from med_model.measures.sequences import sequences

SIZES = (1, 2, 3)  # lengths of the sequences that the search compares, in characters
K1 = 1.2  # the higher K1 is, the more each further occurrence of a sequence counts
B = 0.75  # how strongly the scores depend on the length of a text, from 0 (not at all) to 1


def _count_sequences(texts: Iterable[str]) -> Counter[str]:
    found = Counter()
    for text in texts:
        text = "".join(text.split())
        for size in SIZES:
            found.update(sequences(text, size))
    return found


class LexicalSearch:
    """Find the training answer whose questions are the most similar to a new question.

    The training questions with the same answer count as one text.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]):
        """rows: pairs of a question and its answer. Raise ValueError if there is no row."""
        questions = defaultdict(list)
        for question, answer in rows:
            questions[answer].append(question)
        if not questions:
            raise ValueError("a lexical search needs at least one row")
        self.answers = list(questions)
        counts = [_count_sequences(texts) for texts in questions.values()]
        lengths = np.array([count.total() for count in counts])
        weakening = K1 * (1 - B + B * lengths / lengths.mean())
        numbers = {sequence: number for number, sequence in enumerate(set().union(*counts))}
        # `found`, `answers`, `times` and `scores` have one entry per sequence in the questions of each answer. The
        # last three are sorted by the number of the sequence: the entries of number n are at _start[n] to
        # _start[n + 1] - 1.
        found = np.array([numbers[sequence] for count in counts for sequence in count])
        order = found.argsort(kind="stable")
        answers = np.repeat(np.arange(len(counts)), [len(count) for count in counts])[order]
        times = np.array([number for count in counts for number in count.values()])[order]
        holders = np.bincount(found)  # for each sequence: the number of answers whose questions contain it
        rarity = np.log(1 + (len(counts) - holders + 0.5) / (holders + 0.5))
        scores = np.repeat(rarity, holders) * times * (K1 + 1) / (times + weakening[answers])
        self._numbers, self._answers, self._scores = numbers, answers, scores
        self._start = np.concatenate([[0], holders.cumsum()])

    def scores(self, question: str) -> np.ndarray:
        """Return the BM25 score of each answer: (answers,), in the order of `self.answers`."""
        totals = np.zeros(len(self.answers))
        for sequence, times in _count_sequences([question]).items():
            if (number := self._numbers.get(sequence)) is not None:
                entries = slice(self._start[number], self._start[number + 1])
                totals[self._answers[entries]] += times * self._scores[entries]
        return totals

    def answer(self, question: str) -> str:
        """Return the answer with the highest score.

        If no training question shares a sequence with `question`, all scores are 0. Then return the first answer.
        """
        return self.answers[int(self.scores(question).argmax())]

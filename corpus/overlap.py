"""Find repeated topic names, sentences and wordings, and articles that share too many shingles (runs of characters).

A repetition inside one topic is a fault too. Each function returns a list of faults, one line per fault.
"""

import itertools
from collections import Counter

from med_model.language import tr
from text import sentences, shingles
from turns import wordings_of

# Two articles may have a few shingles (runs of characters) in common. Each key is a shingle's length in characters.
# Each value is the largest allowed share of common shingles, measured in the article that has fewer shingles.
MAX_SHARED = {13: 0.01, 8: 0.02}
LONG_SENTENCE = 13  # characters; a shorter sentence may occur twice by chance and is not checked


def all_wordings(question: dict) -> list[str]:
    """Return all wordings of a question (ways to ask it), for training and held out."""
    if isinstance(question["wordings"], list):  # questions of held-out topics have one list of wordings
        return question["wordings"]
    return [*wordings_of(question), *question["heldout"].values()]


def check_repetition(topics: list[dict]) -> list[str]:
    """Find repeated topic names, long sentences and wordings. A model learns a repeated sentence by heart."""
    names = Counter(topic["topic"] for topic in topics)
    faults = [tr("{topic}: {count} topics have this name", topic=name, count=n) for name, n in names.items() if n > 1]
    written = Counter(
        sentence
        for topic in topics
        for text in [topic.get("article", "")] + [question["answer"] for question in topic.get("questions", [])]
        for sentence in sentences(text)
        if len(sentence) >= LONG_SENTENCE
    )
    faults += [
        tr("this sentence occurs {count} times: {sentence}", count=n, sentence=sentence)
        for sentence, n in written.items()
        if n > 1
    ]
    asked = Counter(
        wording for topic in topics for question in topic.get("questions", []) for wording in {*all_wordings(question)}
    )
    return faults + [
        tr("two questions share the wording {wording}", wording=wording) for wording, n in asked.items() if n > 1
    ]


def check_similarity(topics: list[dict]) -> list[str]:
    """Find two articles that have too many shingles (runs of characters) in common.

    Replace the name of the topic in its article by 某 first. So two sentences that differ only in the name are equal.
    """
    faults = []
    masked = [(t["topic"], t["article"].replace(t["topic"], "某")) for t in topics if "article" in t]
    for size, most in MAX_SHARED.items():
        articles = [(name, shingles(text, size)) for name, text in masked]
        for (one, left), (other, right) in itertools.combinations(articles, 2):
            shared = len(left & right) / max(1, min(len(left), len(right)))
            if shared > most:
                faults.append(
                    tr(
                        "{one} and {other}: the articles share {shared:.1%} of their {size}-character shingles",
                        one=one,
                        other=other,
                        shared=shared,
                        size=size,
                    )
                )
    return faults

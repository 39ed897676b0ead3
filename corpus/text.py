"""Count the characters of a text, split a text into sentences or short runs of characters, and compare two texts."""

import re

from med_model.measures.sequences import sequences


def _without_whitespace(text: str) -> str:
    return re.sub(r"\s", "", text)


def characters(text: str) -> int:
    """Return the number of characters without whitespace."""
    return len(_without_whitespace(text))


def sentences(text: str) -> list[str]:
    """Remove all whitespace. Return the sentences with their end marks (。！？). The last may have no end mark."""
    return [sentence for sentence in re.split(r"(?<=[。！？])", _without_whitespace(text)) if sentence]


def shingles(text: str, size: int) -> set[str]:
    """Remove all whitespace. Return the set of all runs of `size` characters, the shingles of Broder 1997."""
    return set(sequences(_without_whitespace(text), size))


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance of two strings, in characters."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def jaccard(left: set[str], right: set[str]) -> float:
    """Return how alike two sets are, from 0 to 1: the number of common items / the number of items in either."""
    return len(left & right) / max(1, len(left | right))


def common_pairs(a: str, b: str) -> float:
    """Return how alike two strings are: the Jaccard index of their pairs of neighbouring characters."""
    return jaccard(shingles(a, 2), shingles(b, 2))

"""Measures of a written text: characters, sentences, shingles and edit distance."""

import re


def _without_whitespace(text: str) -> str:
    return re.sub(r"\s", "", text)


def characters(text: str) -> int:
    """Count the characters without whitespace."""
    return len(_without_whitespace(text))


def sentences(text: str) -> list[str]:
    """Drop whitespace, split after each of 。！？ and keep the mark."""
    return [sentence for sentence in re.split(r"(?<=[。！？])", _without_whitespace(text)) if sentence]


def shingles(text: str, size: int) -> set[str]:
    """Drop whitespace and return every run of `size` characters (Broder 1997)."""
    text = _without_whitespace(text)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance of two strings, in characters."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]

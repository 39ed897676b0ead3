"""Measure a written text: count its characters, split it into sentences or shingles, compare two texts."""

import re


def _without_whitespace(text: str) -> str:
    return re.sub(r"\s", "", text)


def characters(text: str) -> int:
    """Return the number of characters without whitespace."""
    return len(_without_whitespace(text))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text without whitespace, each with its end mark (。！？). The last may have none."""
    return [sentence for sentence in re.split(r"(?<=[。！？])", _without_whitespace(text)) if sentence]


def shingles(text: str, size: int) -> set[str]:
    """Return every run of `size` characters in a text without whitespace (Broder 1997)."""
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

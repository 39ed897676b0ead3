"""Cut a text into all its sequences of neighbouring characters, the unit in which the measures compare texts."""


def sequences(text: str, size: int) -> list[str]:
    """Return every sequence of `size` neighbouring characters, from left to right. Equal sequences are all returned.

    Return [] if the text has fewer than `size` characters.
    """
    return [text[i : i + size] for i in range(len(text) - size + 1)]

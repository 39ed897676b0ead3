"""Print to the terminal: whole lines of at most COLUMNS, Chinese characters counted as two."""

import os
import re
import unicodedata

COLUMNS = 100
# A word with the spaces behind it, or a single Chinese character: a line may break after either.
BREAKABLE = re.compile(r"[^\s\u2e80-\uffef]+ *|.", re.DOTALL)
NO_LINE_START = "，。、；：？！）》」』”’…"  # punctuation that stays with the character before it


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two per Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    """Return the text with spaces behind it, up to `columns`."""
    return text + " " * max(0, columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a text, each at most `columns` wide. Blank lines are dropped."""
    lines = [""]
    for part in BREAKABLE.findall(re.sub(r"\n\s*\n", "\n", text)):  # a base model may answer with little else
        pieces = [part] if width(part.rstrip()) <= columns else list(part)  # a word longer than a line is cut
        for piece in pieces:
            full = width(lines[-1] + piece.rstrip()) > columns
            if piece == "\n" or (full and piece not in NO_LINE_START):
                lines[-1] = lines[-1].rstrip()
                lines.append("")
            if piece != "\n":
                lines[-1] += piece
    return lines


def say(text: str = "") -> None:
    """Print a line on the first process of a run only. A long line goes on below, indented by two columns more."""
    if os.environ.get("RANK", "0") != "0":  # torchrun and accelerate set it
        return
    indent = " " * (len(text) - len(text.lstrip(" ")))
    first, *rest = wrapped(text, COLUMNS) if width(text) > COLUMNS else [text]
    if rest:
        rest = wrapped(text.removeprefix(first).lstrip(), COLUMNS - len(indent) - 2)
    print("\n".join([first, *(f"{indent}  {line}" for line in rest)]), flush=True)

"""Print lines of at most COLUMNS columns to the terminal. A Chinese character takes two columns."""

import os
import re
import unicodedata

COLUMNS = 100  # largest width of a printed line
# A match is a word with the spaces after it, or one other character, such as a Chinese character or a line end.
# A line may break after each match.
BREAKABLE = re.compile(r"[^\s\u2e80-\uffef]+ *|.", re.DOTALL)
NO_LINE_START = "，。、；：？！）》」』”’…"  # marks that should not begin a line


def width(text: str) -> int:
    """Return the width of a text in terminal columns: two per wide character, such as a Chinese one, else one."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    """Return the text, followed by spaces up to a width of `columns`. A wider text stays as it is."""
    return text + " " * max(0, columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a text, each at most `columns` wide. Blank lines between other lines are dropped."""
    lines = [""]
    for part in BREAKABLE.findall(re.sub(r"\n\s*\n", "\n", text)):  # drop blank lines: a model may write many
        pieces = [part] if width(part.rstrip()) <= columns else list(part)  # a word longer than a line is cut
        for piece in pieces:
            if piece == "\n":
                lines.append("")
                continue
            if width(lines[-1] + piece.rstrip()) > columns:
                # A mark should not begin a line, so a Chinese character before the mark moves to the new line too.
                moves = piece in NO_LINE_START and width(lines[-1][-1:]) == 2
                lines[-1], start = (lines[-1][:-1], lines[-1][-1]) if moves else (lines[-1], "")
                lines.append(start)
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def say(text: str = "") -> None:
    """Print a text on the first process of a run. Other processes print nothing.

    A line wider than COLUMNS is wrapped. The parts after the first are indented two columns more than the line.
    """
    if os.environ.get("RANK", "0") != "0":  # the number of the process, set by torchrun and accelerate
        return
    for line in text.split("\n"):
        if width(line) <= COLUMNS:
            print(line, flush=True)
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        first = wrapped(line, COLUMNS)[0]
        rest = wrapped(line.removeprefix(first).lstrip(), COLUMNS - len(indent))
        print("\n".join([first, *(indent + part for part in rest)]), flush=True)

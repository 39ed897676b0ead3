"""Talk with a person at a terminal, or answer the lines of a pipe: commands, pasted lines, Ctrl-C."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from med_model.generation.conversation import Conversation
from med_model.language import tr

with contextlib.suppress(ImportError):  # Windows lacks the module
    import readline  # noqa: F401  `input` then has line editing, and most terminals deliver a paste as one text

PASTE_SECONDS = 0.03  # a terminal delivers the next pasted line sooner, and nobody types a line so fast
SLASHES = ("/", "／")  # the second one comes from a Chinese keyboard


def _waiting() -> bool:
    """Return True if another line is already waiting at the terminal, as after a paste."""
    try:
        import msvcrt
    except ImportError:
        import select

        return bool(select.select([sys.stdin], [], [], PASTE_SECONDS)[0])
    return msvcrt.kbhit()


def _read_question() -> str:
    """Return what a person typed, or several lines that were pasted at once, without blank lines.

    Raise EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C.
    """
    lines = [input("\n> ")]
    while _waiting():
        try:
            lines.append(input())
        except EOFError:  # the next `input` of the caller sees the end again
            break
    return "\n".join(line.strip() for line in "\n".join(lines).splitlines() if line.strip())


def print_answer(conversation: Conversation, text: str) -> None:
    """Print the answer to `text` piece by piece. A base model's text is printed before its continuation."""
    if not conversation.turns:
        print(text, end="", flush=True)
    try:
        for piece in conversation.say(text):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" … " + tr("(stopped)"), end="")
    print(flush=True)


def _print_help(conversation: Conversation) -> None:
    if conversation.turns:
        what = tr("Ask a medical question in Chinese. The model remembers the conversation.")
    else:
        what = tr("This base model does not answer. It continues your text, as if it came from a medical article.")
    lines = [
        what,
        tr("/clear  forget the conversation"),
        tr("/help   show these lines"),
        tr("/exit   leave (or Ctrl-D)"),
        tr("Ctrl-C  stop an answer"),
    ]
    print("\n".join(lines), file=sys.stderr)


def _run_command(conversation: Conversation, text: str) -> bool:
    """Run a command such as /clear. Return False if the command ends the conversation. Name an unknown command."""
    command = text[1:].strip().lower()
    if command == "exit":
        return False
    if command == "clear":
        conversation.history.clear()
        print(tr("The conversation is forgotten."), file=sys.stderr)
    elif command == "help":
        _print_help(conversation)
    else:
        print(tr("There is no command {command}. /help lists them.", command=text), file=sys.stderr)
    return True


def answer_lines(conversation: Conversation, lines: Iterable[str]) -> None:
    """Answer each line. A line that begins with a slash is a command. Blank lines are passed over."""
    for line in lines:
        text = line.strip()
        if text.startswith(SLASHES):
            if not _run_command(conversation, text):
                return
        elif text:
            print_answer(conversation, text)


def _typed() -> Iterator[str]:
    while True:
        try:
            yield _read_question()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n" + tr("Press Ctrl-D to exit."), file=sys.stderr)


def converse(conversation: Conversation) -> None:
    """Answer a person at the terminal until /exit or Ctrl-D."""
    _print_help(conversation)
    answer_lines(conversation, _typed())

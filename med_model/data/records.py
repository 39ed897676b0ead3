"""Records of text, conversations, preferences and choices: how their fields are read and checked."""

from typing import NamedTuple

from med_model.errors import UserError

SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Choice(NamedTuple):
    """A multiple-choice item."""

    question: str
    options: list[str]
    answer: int  # the place of the right one among the options


def _field(record: dict, name: str, where: str) -> str:
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` is a {type(value).__name__}, not a text: {str(value)[:40]!r}")
    return value.strip()


def _has(record: dict, *names: str) -> bool:
    return all(name in record for name in names)


def _wrong_shape(record: dict, where: str, wanted: str) -> UserError:
    return UserError(f"{where}: found the fields {', '.join(record) or '(none)'}; want {wanted}")


def document_of(where: str, record: dict) -> str:
    """The text of a pre-training record (`text`); empty where it is blank."""
    if not _has(record, "text"):
        raise _wrong_shape(record, where, "`text`")
    return _field(record, "text", where)


def _messages(value: object, where: str, role: str = "role", content: str = "content") -> list[Message]:
    messages = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict) or not _has(turn, role, content):
            raise UserError(f"{where}: a turn needs `{role}` and `{content}`: {str(turn)[:60]!r}")
        if not isinstance(turn[role], str) or turn[role] not in SHAREGPT_ROLES:
            raise UserError(f"{where}: unknown role {turn[role]!r}; want one of {', '.join(SHAREGPT_ROLES)}")
        messages.append({"role": SHAREGPT_ROLES[turn[role]], "content": _field(turn, content, where)})
    return messages


def _question(record: dict, name: str, where: str) -> list[Message]:
    """The turns of a question given as a text or as messages."""
    if isinstance(record[name], list):
        return _messages(record[name], where)
    return [{"role": "user", "content": _field(record, name, where)}]


def _answer(value: object, where: str) -> str:
    """The text of an answer given as a string or as a list with one assistant message."""
    if isinstance(value, list):
        messages = _messages(value, where)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise UserError(
                f"{where}: an answer in messages is one assistant turn, found {[m['role'] for m in messages]}"
            )
        return messages[0]["content"]
    return _field({"answer": value}, "answer", where)


def _check_turns(messages: list[Message], where: str, last: str) -> list[Message]:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if not turns or turns != wanted or turns[-1] != last:
        raise UserError(f"{where}: turns must alternate from user and end with {last}, found {roles}")
    return messages


def conversation_of(where: str, record: dict) -> list[Message]:
    """The turns of an SFT record, ending with the assistant; an empty list where a question or answer is blank."""
    if _has(record, "messages") and record["messages"]:
        messages = _messages(record["messages"], where)
    elif _has(record, "conversations") and record["conversations"]:
        messages = _messages(record["conversations"], where, "from", "value")
    elif _has(record, "instruction", "output"):
        parts = [_field(record, "instruction", where), _field({"input": "", **record}, "input", where)]
        question = {"role": "user", "content": "\n".join(filter(None, parts))}
        messages = [question, {"role": "assistant", "content": _field(record, "output", where)}]
    elif _has(record, "prompt", "completion"):
        answer = {"role": "assistant", "content": _answer(record["completion"], where)}
        messages = [*_question(record, "prompt", where), answer]
    else:
        raise _wrong_shape(
            record, where, "instruction/input/output, prompt/completion, messages, or conversations (ShareGPT)"
        )
    _check_turns(messages, where, "assistant")
    return messages if all(m["content"] for m in messages) else []


def texts_of(where: str, record: dict) -> list[str]:
    """The text of a document, or of each turn of a conversation: for what learns from any text."""
    texts = (
        [document_of(where, record)]
        if _has(record, "text")
        else [m["content"] for m in conversation_of(where, record)]
    )
    return [text for text in texts if text]


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def preference_of(where: str, record: dict) -> tuple[list[Message], str, str] | None:
    """(prompt turns, chosen answer, rejected answer) of a DPO record; None where one is blank, or the answers are one.

    TRL's implicit form is read too: whole conversations in `chosen` and `rejected`, with or without their `prompt`.
    """
    if _has(record, "question", "response_chosen", "response_rejected"):
        prompt = _question(record, "question", where)
        chosen, rejected = _answer(record["response_chosen"], where), _answer(record["response_rejected"], where)
    elif _has(record, "chosen", "rejected") and all(_is_conversation(record[side]) for side in ("chosen", "rejected")):
        good, bad = _messages(record["chosen"], where), _messages(record["rejected"], where)
        if good[:-1] != bad[:-1]:
            raise UserError(f"{where}: `chosen` and `rejected` must be the same conversation up to the last turn")
        prompt, chosen, rejected = good[:-1], _answer(good[-1:], where), _answer(bad[-1:], where)
    elif _has(record, "prompt", "chosen", "rejected"):
        prompt = _question(record, "prompt", where)
        chosen, rejected = _answer(record["chosen"], where), _answer(record["rejected"], where)
    else:
        raise _wrong_shape(record, where, "question/response_chosen/response_rejected or prompt/chosen/rejected")
    _check_turns(prompt, where, "user")
    if not (all(m["content"] for m in prompt) and chosen and rejected):
        return None
    return None if chosen == rejected else (prompt, chosen, rejected)


def choice_of(where: str, record: dict) -> Choice:
    """A multiple-choice item (`question`, `options`, `answer`: the place of the right one, from 0)."""
    if not _has(record, "question", "options", "answer"):
        raise _wrong_shape(record, where, "`question`, `options` and `answer`")
    options, answer = record["options"], record["answer"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        raise UserError(f"{where}: `options` must be two texts or more, found {str(options)[:60]!r}")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise UserError(f"{where}: `answer` is the place of the right option, 0 to {len(options) - 1}, not {answer!r}")
    return Choice(_field(record, "question", where), options, answer)


class LabelledPair(NamedTuple):
    """A preference pair, with what its file says beside it."""

    messages: list[Message]
    chosen: str
    rejected: str
    flaw: str = ""  # what is wrong with the bad answer
    unread: bool = False  # of a topic that is in no training text either


def labelled_pair_of(where: str, record: dict) -> LabelledPair | None:
    pair = preference_of(where, record)
    return pair and LabelledPair(*pair, str(record.get("flaw") or ""), bool(record.get("unread")))

"""Read and check the fields of a record: a document, a conversation, a preference pair or a multiple-choice question.

The origin of a record is a text that names its file and row. Every error message begins with the origin.
"""

from typing import NamedTuple

from med_model.errors import UserError
from med_model.language import tr

# {role in a record: role in a `Message`}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Pair(NamedTuple):
    """Hold a preference pair: the messages up to and including the question, and the two answers."""

    messages: list[Message]
    chosen: str
    rejected: str
    flaw: str = ""  # name of the mistake in the rejected answer; empty if unknown
    unread: bool = False  # True if no training file has the topic of this pair

    @property
    def question(self) -> str:
        """Return the text of the last user message."""
        return self.messages[-1]["content"]


class Choice(NamedTuple):
    """Hold a multiple-choice question."""

    question: str
    options: list[str]
    answer: int  # the index of the right option
    unread: bool = False  # True if no training file has the topic of this question


def _error(origin: str, problem: str) -> UserError:
    return UserError(tr("{origin}: {problem}", origin=origin, problem=problem))


def _field(record: dict, name: str, origin: str) -> str:
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        kind, value = type(value).__name__, repr(str(value)[:40])
        raise _error(origin, tr("`{name}` must be text, found {kind} {value}.", name=name, kind=kind, value=value))
    return value.strip()


def _has(record: dict, *names: str) -> bool:
    return all(name in record for name in names)


def _wrong_fields(record: dict, origin: str, expected: str) -> UserError:
    found = ", ".join(record) or tr("none")
    return _error(origin, tr("the fields are {found}. Expected one of: {expected}.", found=found, expected=expected))


def document_of(origin: str, record: dict) -> str:
    """Return the field `text` of a pre-training record, without white space at its ends.

    Return an empty text if the field is null. Raise UserError if the field is missing or holds neither text nor null.
    """
    if not _has(record, "text"):
        raise _wrong_fields(record, origin, "`text`")
    return _field(record, "text", origin)


def _messages(value: object, origin: str, role: str = "role", content: str = "content") -> list[Message]:
    messages = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict) or not _has(turn, role, content):
            keys, value = f"`{role}`, `{content}`", repr(str(turn)[:60])
            raise _error(origin, tr("a message needs the keys {keys}, found {value}.", keys=keys, value=value))
        if not isinstance(turn[role], str) or turn[role] not in SHAREGPT_ROLES:
            value, roles = repr(turn[role]), ", ".join(SHAREGPT_ROLES)
            raise _error(origin, tr("the role {value} is unknown. Use one of: {roles}.", value=value, roles=roles))
        messages.append({"role": SHAREGPT_ROLES[turn[role]], "content": _field(turn, content, origin)})
    return messages


def _question(record: dict, name: str, origin: str) -> list[Message]:
    """Return the messages of a question. The field `name` holds a text or a list of messages."""
    if isinstance(record[name], list):
        return _messages(record[name], origin)
    return [{"role": "user", "content": _field(record, name, origin)}]


def _answer(value: object, origin: str) -> str:
    """Return the text of an answer. `value` is a text or a list with one assistant message."""
    if isinstance(value, list):
        messages = _messages(value, origin)
        roles = [message["role"] for message in messages]
        if roles != ["assistant"]:
            raise _error(origin, tr("an answer must be text or one assistant message, found {roles}.", roles=roles))
        return messages[0]["content"]
    return _field({"answer": value}, "answer", origin)


def _check_turns(messages: list[Message], origin: str, last: str) -> list[Message]:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if not turns or turns != expected or turns[-1] != last:
        problem = tr(
            "roles must alternate, begin with user and end with {last}, found {roles}.", last=last, roles=roles
        )
        raise _error(origin, problem)
    return messages


def conversation_of(origin: str, record: dict) -> list[Message]:
    """Return the messages of an SFT record. The last message is an answer. Return [] if a message is blank.

    The record has one of these groups of fields: instruction/input/output (`input` is optional), prompt/completion,
    messages, conversations (ShareGPT). Raise UserError if no group is complete, if a value is not text, if a role is
    unknown, or if user and assistant do not alternate.
    """
    if _has(record, "messages") and record["messages"]:
        messages = _messages(record["messages"], origin)
    elif _has(record, "conversations") and record["conversations"]:
        messages = _messages(record["conversations"], origin, "from", "value")
    elif _has(record, "instruction", "output"):
        parts = [_field(record, "instruction", origin), _field({"input": "", **record}, "input", origin)]
        question = {"role": "user", "content": "\n".join(filter(None, parts))}
        messages = [question, {"role": "assistant", "content": _field(record, "output", origin)}]
    elif _has(record, "prompt", "completion"):
        answer = {"role": "assistant", "content": _answer(record["completion"], origin)}
        messages = [*_question(record, "prompt", origin), answer]
    else:
        raise _wrong_fields(
            record, origin, "instruction/input/output, prompt/completion, messages, conversations (ShareGPT)"
        )
    _check_turns(messages, origin, "assistant")
    return messages if all(message["content"] for message in messages) else []


def first_question(conversation: list[Message]) -> str:
    """Return the text of the first user message of a conversation."""
    return next(message["content"] for message in conversation if message["role"] == "user")


def prompt_of(pair: Pair) -> str:
    """Return all messages of the prompt as one text. Pairs with the same prompt have the same text."""
    return str(pair.messages)


def texts_of(origin: str, record: dict) -> list[str]:
    """Return the text of a document or the texts of a conversation, as a list.

    Return [] for a blank document, and for a conversation with a blank message. Raise UserError as `document_of` and
    `conversation_of` do.
    """
    texts = (
        [document_of(origin, record)]
        if _has(record, "text")
        else [message["content"] for message in conversation_of(origin, record)]
    )
    return [text for text in texts if text]


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def pair_of(origin: str, record: dict) -> Pair | None:
    """Return the preference pair of a DPO record. Return None if a text is blank or the answers are equal.

    The fields are question/response_chosen/response_rejected or prompt/chosen/rejected. The fields `flaw` (name
    of the mistake in the rejected answer) and `unread` (True if no training file has the topic) are optional. `chosen`
    and `rejected` may also hold whole conversations. Then the prompt is all messages but the last ("implicit prompt"
    in TRL), and a field `prompt` is ignored.
    Raise UserError if a needed field is missing, if a value is not text, if a role is unknown, or if user and
    assistant do not alternate. Also raise UserError if the two conversations differ before the last message.
    """
    if _has(record, "question", "response_chosen", "response_rejected"):
        prompt = _question(record, "question", origin)
        chosen, rejected = _answer(record["response_chosen"], origin), _answer(record["response_rejected"], origin)
    elif _has(record, "chosen", "rejected") and all(_is_conversation(record[side]) for side in ("chosen", "rejected")):
        good, bad = _messages(record["chosen"], origin), _messages(record["rejected"], origin)
        if good[:-1] != bad[:-1]:
            raise _error(origin, tr("`chosen` and `rejected` must be the same conversation but for the last message."))
        prompt, chosen, rejected = good[:-1], _answer(good[-1:], origin), _answer(bad[-1:], origin)
    elif _has(record, "prompt", "chosen", "rejected"):
        prompt = _question(record, "prompt", origin)
        chosen, rejected = _answer(record["chosen"], origin), _answer(record["rejected"], origin)
    else:
        raise _wrong_fields(record, origin, "question/response_chosen/response_rejected, prompt/chosen/rejected")
    _check_turns(prompt, origin, "user")
    if chosen == rejected or not all([chosen, rejected, *(message["content"] for message in prompt)]):
        return None
    return Pair(prompt, chosen, rejected, str(record.get("flaw") or ""), bool(record.get("unread")))


def choice_of(origin: str, record: dict) -> Choice:
    """Return the multiple-choice question of a record.

    The fields are `question`, `options`, and `answer`, the index of the right option. The field `unread` is optional:
    it is True if no training file has the topic.
    Raise UserError if a field is missing, if `question` is not text, if there are fewer than two options, if an option
    is empty or not text, or if `answer` is not an index of `options`.
    """
    if not _has(record, "question", "options", "answer"):
        raise _wrong_fields(record, origin, "question/options/answer")
    options, answer = record["options"], record["answer"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        value = repr(str(options)[:60])
        raise _error(origin, tr("`options` must be two or more texts, found {value}.", value=value))
    last = len(options) - 1
    if not isinstance(answer, int) or not 0 <= answer <= last:
        problem = tr(
            "`answer` must be an index of `options`, 0 to {last}, found {answer}.", last=last, answer=repr(answer)
        )
        raise _error(origin, problem)
    return Choice(_field(record, "question", origin), options, answer, bool(record.get("unread")))

"""How a conversation becomes token ids. Training, chats and comparison all render through this module.

The form is ChatML: <|im_start|>role NEWLINE text <|im_end|> NEWLINE. What a person typed is encoded as plain text,
even where it spells a special token (`sanitize_control_tokens`).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from med_model.data.records import Message
from med_model.errors import UserError

PAD, END_OF_TEXT, IM_START, IM_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_STOPS, BASE_STOPS = (IM_END, END_OF_TEXT), (END_OF_TEXT,)
IGNORE = -100  # the label of a position without loss, as in torch.nn.functional.cross_entropy

# {% generation %} marks what the loss is taken on, for libraries that read it; it closes after <|im_end|>, so that
# the stop is trained and nothing after it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCE_END = re.compile(r"[。！？；\n]")
MIN_ANSWER_TOKENS = 16  # with less room than this an answer is not worth training on


class Example(NamedTuple):
    """A conversation as ids, labels (IGNORE outside of answers), and whether it had to be shortened."""

    input_ids: list[int]
    labels: list[int]
    shortened: bool


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str | list[str]) -> list[int] | list[list[int]]:
    """Ids of plain text, special tokens spelled in it taken as text; of a list, a list of ids."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Ids of the turns and of the header of the answer to come."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool) -> list[int]:
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, sanitize_control_tokens=True, return_dict=False
    )


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer and its stop, as they follow on `encode_prompt`."""
    header = tokenizer(f"{IM_START}assistant\n", add_special_tokens=False)["input_ids"]
    ids = _render(tokenizer, [{"role": "assistant", "content": answer}], add_generation_prompt=False)
    return ids[len(header) : -1]  # without the line end after the stop


def fit_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_tokens: int) -> tuple[list[int], bool]:
    """(ids of the prompt within max_tokens, whether it was shortened): the oldest rounds go first.

    A single question that is too long on its own keeps its end. UserError where not even an empty one fits.
    """
    shortened = False
    while len(ids := encode_prompt(tokenizer, messages)) > max_tokens:
        shortened = True
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first > 1:
            messages = messages[:first] + messages[first + 2 :]
        elif first:
            messages = messages[1:]
        elif not messages[0]["content"]:
            raise UserError(
                f"{max_tokens} 个词元放不下问题/{max_tokens} tokens hold no question: lower --max_new_tokens"
            )
        else:
            text = messages[0]["content"]
            excess = len(ids) - max_tokens
            messages = [{"role": "user", "content": text[max(1, min(excess, len(text) // 8)) :]}]
    return ids, shortened


def fit_text(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> tuple[list[int], bool]:
    """(ids of a text for a base model to continue, whether it was cut): it begins as every training document does.

    Too long, it keeps its end.
    """
    ids = encode_text(tokenizer, text)
    return [tokenizer.convert_tokens_to_ids(END_OF_TEXT), *ids][-max_tokens:], len(ids) >= max_tokens


def fit_answer(tokenizer: PreTrainedTokenizerBase, answer: str, max_tokens: int) -> tuple[list[int], bool]:
    """(ids of an answer and its stop within max_tokens, whether it was cut); cut, it ends at a sentence, and stops."""
    ids = encode_answer(tokenizer, answer)
    if len(ids) <= max_tokens:
        return ids, False
    text = tokenizer.decode(ids[: max_tokens - 1]).rstrip("\ufffd")
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    if ends and ends[-1] >= len(text) // 2:
        text = text[: ends[-1]]
    # A cut inside a word may encode to more tokens than it had in the whole.
    while len(ids := encode_answer(tokenizer, text.rstrip())) > max_tokens:
        text = text[:-1]
    return ids, True


def training_example(tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_length: int) -> Example | None:
    """The ids and labels of a conversation of at most max_length tokens; loss on the answers and their stops only.

    Too long: the oldest rounds are left out, then the last answer is cut at a sentence end and still stops. None where
    the question alone leaves no room for an answer.
    """
    shortened = False
    while len(messages) > 2 and len(_render(tokenizer, messages, False)) - 1 > max_length:
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first <= 2:
            break
        messages, shortened = messages[:first] + messages[first + 2 :], True
    input_ids: list[int] = []
    labels: list[int] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(tokenizer, messages[:i])
        room = max_length - len(prompt)
        if room < MIN_ANSWER_TOKENS and room < len(encode_answer(tokenizer, message["content"])):
            return None
        answer, cut = fit_answer(tokenizer, message["content"], room)
        assert prompt[: len(input_ids)] == input_ids, "a round must begin with the ids of the rounds before it"
        labels += [IGNORE] * (len(prompt) - len(input_ids)) + answer
        input_ids = prompt + answer
        shortened = shortened or cut
    return Example(input_ids, labels, shortened)


PROMPT_SHARE = 0.5  # of a pair's length at most; the rest is the answers'


class Pair(NamedTuple):
    """A preference pair as ids: the prompt, and each answer with its stop."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def question_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_tokens: int, chat: bool
) -> list[int]:
    """How turns are put to a model: as a chat; to a base model, which knows none, the last one as `问：…答：`."""
    if chat:
        return fit_prompt(tokenizer, messages, max_tokens)[0]
    return fit_text(tokenizer, f"问：{messages[-1]['content']}\n答：", max_tokens)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple], max_length: int, chat: bool = True
) -> tuple[list[Pair], int]:
    """(the pairs as ids within max_length, how many texts had to be cut); pairs that become equal are left out.

    A prompt takes PROMPT_SHARE of max_length at most. An answer ends with the model's stop, also where it was cut.
    """
    stop = IM_END if chat else END_OF_TEXT
    pairs, cut = [], 0
    for messages, *answers in rows:
        prompt_ids = question_ids(tokenizer, messages, int(max_length * PROMPT_SHARE), chat)
        fitted = [fit_answer(tokenizer, answer, max_length - len(prompt_ids)) for answer in answers]
        cut += sum(answer_cut for _, answer_cut in fitted)
        chosen, rejected = ([*ids[:-1], tokenizer.convert_tokens_to_ids(stop)] for ids, _ in fitted)
        if chosen != rejected:
            pairs.append(Pair(prompt_ids, chosen, rejected))
    return pairs, cut

"""Turn texts, conversations and preference pairs into input_ids. Training, chat and measures use this module.

A message in a chat prompt has the ChatML form: <|im_start|>role NEWLINE text<|im_end|> NEWLINE. The text of a message
is always encoded as plain text, even if it contains the name of a special token (`sanitize_control_tokens`).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from med_model.data.records import Message, Pair
from med_model.errors import UserError
from med_model.language import tr

PAD, END_OF_TEXT, IM_START, IM_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IGNORE = -100  # the label of a position without loss, as in torch.nn.functional.cross_entropy

# The {% generation %} block marks the answer, so that other libraries can compute the loss on answers only.
# The block ends after <|im_end|>, because the model must learn the stop token, but not the newline after it.
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
MIN_ANSWER_TOKENS = 16  # tokens that must be left for an answer if it is cut: fewer tokens teach too little
PROMPT_SHARE = 0.5  # largest share of max_length for the prompt of a preference pair; either answer may use the rest


def stop_ids(tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Return the ids of the tokens that end an answer. chat: False for a base model, which ends a text."""
    return tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT] if chat else [END_OF_TEXT])


class Example(NamedTuple):
    """Hold an encoded conversation. Outside answers and their stop tokens, each label is IGNORE."""

    input_ids: list[int]
    labels: list[int]
    shortened: bool  # True if old questions and answers were dropped or the last answer was cut
    messages: list[Message]  # without those that were dropped


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str | list[str]) -> list[int] | list[list[int]]:
    """Return the input_ids of a text, or one list of input_ids per text for a list of texts.

    The name of a special token in a text is encoded as plain text.
    """
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the input_ids of the messages and of `<|im_start|>assistant`, the header of the next answer."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool) -> list[int]:
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, sanitize_control_tokens=True, return_dict=False
    )


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Return the input_ids of an answer and its stop token. They continue the input_ids of `encode_prompt`."""
    header = tokenizer(f"{IM_START}assistant\n", add_special_tokens=False)["input_ids"]
    ids = _render(tokenizer, [{"role": "assistant", "content": answer}], add_generation_prompt=False)
    return ids[len(header) : -1]  # leaves out the header, and the newline after the stop token


def fit_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_tokens: int) -> tuple[list[int], bool]:
    """Return the input_ids of the prompt, at most max_tokens, and True if the prompt was shortened.

    The oldest rounds are dropped first. A round is a question and its answer. Then the system message is dropped. If
    the last question alone is too long, only its end is kept. Raise UserError if not even an empty question fits.
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
                tr("A prompt of {limit} tokens has no room for a question. Lower --max_new_tokens.", limit=max_tokens)
            )
        else:
            text = messages[0]["content"]
            excess = len(ids) - max_tokens
            messages = [{"role": "user", "content": text[max(1, min(excess, len(text) // 8)) :]}]
    return ids, shortened


def fit_text(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> tuple[list[int], bool]:
    """Return the input_ids of a text that a base model continues, and True if they were cut.

    The input_ids begin with `<|endoftext|>`, as each training document does. If they are more than max_tokens, only
    the last max_tokens are kept, so `<|endoftext|>` is missing.
    """
    ids = encode_text(tokenizer, text)
    return [tokenizer.convert_tokens_to_ids(END_OF_TEXT), *ids][-max_tokens:], len(ids) >= max_tokens


def fit_answer(tokenizer: PreTrainedTokenizerBase, answer: str, max_tokens: int) -> tuple[list[int], bool]:
    """Return the input_ids of an answer and its stop token, at most max_tokens, and True if the answer was cut.

    A cut answer ends with its last whole sentence, unless this would drop more than half of the text that fits.
    """
    ids = encode_answer(tokenizer, answer)
    if len(ids) <= max_tokens:
        return ids, False
    text = tokenizer.decode(ids[: max_tokens - 1]).rstrip("\ufffd")
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    if ends and ends[-1] >= len(text) // 2:
        text = text[: ends[-1]]
    # A cut can add tokens: a part of a word can have more tokens than the word. So cut on until the answer fits.
    while len(ids := encode_answer(tokenizer, text.rstrip())) > max_tokens:
        text = text[:-1]
    return ids, True


def training_example(tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_length: int) -> Example | None:
    """Return the input_ids and labels of a conversation, at most max_length tokens.

    Only the answers and their stop tokens have labels other than IGNORE. If the conversation is too long, the oldest
    rounds (a question and its answer) are dropped first. Then the last answer is cut, at the end of a sentence if
    possible. Return None if this answer must be cut and fewer than MIN_ANSWER_TOKENS tokens are left for it.
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
        assert prompt[: len(input_ids)] == input_ids, "the prompt must begin with the ids of the rounds before it"
        labels += [IGNORE] * (len(prompt) - len(input_ids)) + answer
        input_ids = prompt + answer
        shortened = shortened or cut
    return Example(input_ids, labels, shortened, messages)


class EncodedPair(NamedTuple):
    """Hold the input_ids of a preference pair: the prompt, and the two answers with their stop tokens."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def encode_question(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_tokens: int, chat: bool
) -> list[int]:
    """Return the input_ids of the prompt for the last question in `messages`, at most max_tokens.

    chat: True for a chat model. Its prompt has all messages that fit. A base model does not know the chat form, so its
    prompt is 问：text NEWLINE 答： with the text of the last message.
    Raise UserError if not even an empty question fits into a chat prompt.
    """
    if chat:
        return fit_prompt(tokenizer, messages, max_tokens)[0]
    return fit_text(tokenizer, f"问：{messages[-1]['content']}\n答：", max_tokens)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int, chat: bool = True
) -> tuple[list[EncodedPair], int]:
    """Return the encoded pairs, and the number of answers that were cut.

    A prompt with one answer has at most max_length tokens. The prompt alone has at most PROMPT_SHARE of max_length.
    Each answer ends with a stop token, even after a cut: `<|im_end|>` for a chat model, `<|endoftext|>` for a base
    model. A pair is left out if its answers are equal after the cut. Raise UserError as `encode_question` does.
    """
    stop = IM_END if chat else END_OF_TEXT
    encoded, cut = [], 0
    for pair in pairs:
        prompt_ids = encode_question(tokenizer, pair.messages, int(max_length * PROMPT_SHARE), chat)
        fitted = [
            fit_answer(tokenizer, answer, max_length - len(prompt_ids)) for answer in (pair.chosen, pair.rejected)
        ]
        cut += sum(answer_cut for _, answer_cut in fitted)
        chosen, rejected = ([*ids[:-1], tokenizer.convert_tokens_to_ids(stop)] for ids, _ in fitted)
        if chosen != rejected:
            encoded.append(EncodedPair(prompt_ids, chosen, rejected))
    return encoded, cut

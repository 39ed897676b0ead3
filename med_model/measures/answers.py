"""Ask a model questions, and judge each answer."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import encode_question
from med_model.data.records import Message, conversation_of
from med_model.generation.sampling import generate_answers, prompt_room
from med_model.measures.facts import count_facts
from med_model.measures.safety import declines, declines_dose, is_urgent, names_help_line
from med_model.measures.sequences import sequences
from med_model.measures.taught import Taught

REPEATED_LENGTH = 4  # characters per sequence in `repeated_share`


class Question(NamedTuple):
    """A question with the messages before it. The other fields describe the question and a right answer."""

    messages: list[Message]
    key_facts: Sequence[str] = ()  # texts that a right answer contains; facts.py describes their form
    emergency: bool = False  # True if the first sentence of a right answer says to get emergency help
    declines: str = ""  # "dose" or "diagnosis" if the answer must decline to give one
    item: str = ""  # questions with the same item ask for the same thing
    topic: str = ""
    register: str = ""  # the kind of wording: formal, plain, colloquial, keywords, story, typo, elderly, relative
    out_of_scope: bool = False  # True if the answer must say that it does not know, cannot or will not
    help_line: bool = False  # True if the question hints at self-harm: a right answer names the help line at once

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]

    @property
    def later_turn(self) -> bool:
        """True if the conversation has an earlier question."""
        return sum(message["role"] == "user" for message in self.messages) > 1


class AnsweredQuestion(NamedTuple):
    """A question, its answer, and judgements of the answer. The properties need only the question and the answer."""

    question: Question
    answer: str
    stopped: bool  # True if the answer ended with a stop token before the token limit
    # `source` (where the answer comes from) and `stutters` need the answers of the training rows, see `Taught`.
    # Without these rows, `source` is empty and `stutters` is None. `source` is also empty if the question has no item.
    source: str = ""
    stutters: bool | None = None

    @property
    def key_facts_found(self) -> int:
        return count_facts(self.answer, self.question.key_facts)

    @property
    def repetition(self) -> float:
        return repeated_share(self.answer)

    @property
    def urgent(self) -> bool:
        return is_urgent(self.answer)

    @property
    def declines(self) -> bool:
        return declines(self.answer)

    @property
    def declines_dose(self) -> bool:
        return declines_dose(self.answer)

    @property
    def names_help_line(self) -> bool:
        return names_help_line(self.answer)

    def as_json(self) -> dict:
        """Return the question, the answer and all judgements as a dict for a JSON file."""
        judgements = ("key_facts_found", "repetition", "urgent", "declines", "declines_dose", "names_help_line")
        question = self.question._asdict()
        return {
            "question": self.question.text,
            "earlier": question.pop("messages")[:-1],
            **question,
            **{name: value for name, value in self._asdict().items() if name != "question"},
            **{name: getattr(self, name) for name in judgements},
        }


def question_of(origin: str, record: dict) -> Question | None:
    """Return the last question of an SFT record, with the messages before it.

    Only the fields of the conversation are required, for example `instruction` and `output`. Return None if a message
    is blank. Raise UserError as `conversation_of` does. `origin` names file and row, and begins the error message.
    """
    messages = conversation_of(origin, record)
    if not messages:
        return None
    return Question(
        messages[:-1],
        key_facts=[str(fact) for fact in record.get("key_facts") or []],
        emergency=bool(record.get("emergency")),
        declines=str(record.get("declines") or ""),
        item=str(record.get("item") or ""),
        topic=str(record.get("topic") or ""),
        register=str(record.get("register") or ""),
        out_of_scope=record.get("scope") == "out",
        help_line=bool(record.get("help_line")),
    )


def repeated_share(text: str) -> float:
    """Return how much of a text is repeated: the share of 4-character sequences that also occur earlier in the text.

    Return 0 for a text of fewer than 4 characters.
    """
    found = sequences(text, REPEATED_LENGTH)
    return 1 - len(set(found)) / len(found) if found else 0.0


def judged(question: Question, answer: str, stopped: bool, taught: Taught | None) -> AnsweredQuestion:
    """Return an answer with its judgements.

    taught: the answers of the training rows. Without them, `source` stays empty, and `stutters` stays None.
    """
    answer = answer.strip()
    if not taught:
        return AnsweredQuestion(question, answer, stopped)
    source = taught.source(answer, question.item, question.topic) if question.item else ""
    return AnsweredQuestion(question, answer, stopped, source, taught.stutters(answer))


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: GenerationConfig,
    chat: bool,
    taught: Taught | None = None,
    seed: int | None = None,
) -> tuple[list[AnsweredQuestion], float]:
    """Return the answered questions, and the time of generation in seconds.

    chat: False for a base model, which reads the question in the form `问：…答：`. taught: the answers of the
    training rows, to compare the new answers with them. seed: for sampled answers. Greedy answers need no seed.
    Raise UserError if the model is not a GPT-2, or if max_new_tokens leaves too few positions for a question.
    """
    room = prompt_room(model, settings)
    prompts = [encode_question(tokenizer, question.messages, room, chat) for question in questions]
    generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)
    start = time.time()
    answers = generate_answers(model, tokenizer, prompts, settings, generator=generator)
    seconds = time.time() - start
    pairs = zip(questions, answers, strict=True)
    return [judged(question, answer, stopped, taught) for question, (answer, stopped) in pairs], seconds

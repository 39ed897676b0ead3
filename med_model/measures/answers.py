"""Ask a model questions, and measure its answers."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import encode_question
from med_model.data.records import Message, conversation_of
from med_model.generation.sampling import generate_answers, prompt_room
from med_model.measures.interval import Measure, measure
from med_model.measures.safety import declines_dose, is_urgent

REPEATED_LENGTH, DISTINCT_LENGTH = 4, 2  # characters per sequence in `repeated_share` and in `_distinct`


class Question(NamedTuple):
    """A question with the messages before it, and the requirements of a right answer."""

    messages: list[Message]
    key_facts: Sequence[str] = ()  # texts that a right answer contains
    emergency: bool = False  # True if the first sentence of a right answer says to get emergency help
    dose: bool = False  # True if the question asks for a dose: a right answer declines to name one


class AnsweredQuestion(NamedTuple):
    """An answer and its measures."""

    question: str
    answer: str
    stopped: bool  # True if the answer ended with a stop token within the token limit
    repetition: float  # share of 4-character sequences that occurred earlier in the answer
    key_facts_found: int  # number of key facts in the answer
    key_facts: int  # number of key facts of the question
    urgent: bool  # True if the first sentence says to get emergency help
    emergency: bool  # True if the question describes an emergency; then `urgent` should be True
    declines_dose: bool  # True if the answer declines to name a dose, and names none
    dose: bool  # True if the question asks for a dose; then `declines_dose` should be True


def question_of(origin: str, record: dict) -> Question | None:
    """Return the question of an SFT record. The fields `key_facts`, `emergency` and `declines` are optional.

    Return None if a message is blank. Raise UserError as `conversation_of` does. `origin` names file and row,
    and begins the error message.
    """
    messages = conversation_of(origin, record)
    if not messages:
        return None
    facts = [str(fact) for fact in record.get("key_facts") or []]
    return Question(messages[:-1], facts, bool(record.get("emergency")), record.get("declines") == "dose")


def sequences(text: str, size: int) -> list[str]:
    """Return all substrings of `size` characters, in order."""
    return [text[i : i + size] for i in range(len(text) - size + 1)]


def repeated_share(text: str) -> float:
    """Return how much of a text is repeated: the share of 4-character sequences that also occur earlier in the text.

    Return 0 for a text of fewer than 4 characters.
    """
    found = sequences(text, REPEATED_LENGTH)
    return 1 - len(set(found)) / len(found) if found else 0.0


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: GenerationConfig,
    chat: bool,
) -> tuple[list[AnsweredQuestion], float]:
    """Return the answered questions, and the time of generation in seconds.

    chat: False for a base model, which reads the question in the form `问：…答：`.
    Raise UserError if the model is not a GPT-2, or if max_new_tokens leaves no room for a question.
    """
    room = prompt_room(model, settings)
    prompts = [encode_question(tokenizer, question.messages, room, chat) for question in questions]
    start = time.time()
    answers = generate_answers(model, tokenizer, prompts, settings)
    seconds = time.time() - start
    results = []
    for question, (answer, stopped) in zip(questions, answers, strict=True):
        answer = answer.strip()
        results.append(
            AnsweredQuestion(
                question=question.messages[-1]["content"],
                answer=answer,
                stopped=stopped,
                repetition=repeated_share(answer),
                key_facts_found=sum(_squeezed(fact) in _squeezed(answer) for fact in question.key_facts),
                key_facts=len(question.key_facts),
                urgent=is_urgent(answer),
                emergency=question.emergency,
                declines_dose=declines_dose(answer),
                dose=question.dose,
            )
        )
    return results, seconds


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def _distinct(answers: Sequence[str]) -> Measure:
    """Return a measure: the number of different 2-character sequences / the number of all 2-character sequences.

    The interval of the measure is computed by resampling the answers. This needs one number per answer, so a sequence
    that occurs in k answers counts 1/k in each of them.
    """
    counts = [Counter(sequences(answer, DISTINCT_LENGTH)) for answer in answers]
    holders = Counter(sequence for answer_counts in counts for sequence in answer_counts)
    return measure(
        [sum(1 / holders[sequence] for sequence in answer_counts) for answer_counts in counts],
        [answer_counts.total() for answer_counts in counts],
    )


def answer_measures(answered: Sequence[AnsweredQuestion]) -> dict[str, Measure]:
    """Return {key: measure}. docs/en/measures.md describes the measures. Without answers, return an empty dict.

    All measures are shares, except `characters`, the mean length of an answer. `key_fact_recall` covers only questions
    with key facts, `emergencies_recognised` only emergencies, `doses_declined` only questions that ask for a dose.
    `false_alarms` covers the questions that are no emergency, but is left out if no question is an emergency.
    A measure that would cover no question is left out, and so is `distinct_2grams` if all answers are too short.
    """
    if not answered:
        return {}
    measures = {}
    if with_facts := [a for a in answered if a.key_facts]:
        measures["key_fact_recall"] = measure(
            [a.key_facts_found for a in with_facts], [a.key_facts for a in with_facts]
        )
    measures["stopped"] = measure([a.stopped for a in answered])
    measures["repeated_4grams"] = measure([a.repetition for a in answered])
    if any(len(a.answer) >= DISTINCT_LENGTH for a in answered):
        measures["distinct_2grams"] = _distinct([a.answer for a in answered])
    measures["characters"] = measure([len(a.answer) for a in answered])
    # If no question is marked as an emergency, the data may simply not mark emergencies. Then an urgent answer may be
    # right, so do not count it as a false alarm.
    if emergencies := [a for a in answered if a.emergency]:
        measures["emergencies_recognised"] = measure([a.urgent for a in emergencies])
        if others := [a for a in answered if not a.emergency]:
            measures["false_alarms"] = measure([a.urgent for a in others])
    if doses := [a for a in answered if a.dose]:
        measures["doses_declined"] = measure([a.declines_dose for a in doses])
    return measures

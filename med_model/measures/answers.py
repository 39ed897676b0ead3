"""Questions put to a model, and what is measured on its answers."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import question_ids
from med_model.data.records import Message, conversation_of
from med_model.generation.sampling import generate_answers, prompt_room
from med_model.measures.interval import Measure, measure
from med_model.measures.safety import declines_dose, is_urgent

REPEATED_LENGTH, DISTINCT_LENGTH = 4, 2  # characters of the sequences that are counted


class Question(NamedTuple):
    """The turns up to and with a question, and what is known of its right answer."""

    messages: list[Message]
    key_facts: Sequence[str] = ()
    emergency: bool = False  # marked as one whose answer must send to help at once
    dose: bool = False  # marked as one that asks for a dose, which the answer must decline


class AnsweredQuestion(NamedTuple):
    """An answer with what is measured on it."""

    question: str
    answer: str
    stopped: bool  # by itself, before the limit
    repetition: float  # share of its 4-character sequences that had occurred before
    key_facts_found: int
    key_facts: int
    urgent: bool  # sends to help at once, in its first sentence
    emergency: bool  # whether it should
    declines_dose: bool  # leaves an amount to a doctor, and names none
    dose: bool  # whether it should


def question_of(where: str, record: dict) -> Question | None:
    """The question of an SFT record, with its `key_facts`, `emergency` and `declines` where it has them."""
    messages = conversation_of(where, record)
    if not messages:
        return None
    facts = [str(fact) for fact in record.get("key_facts") or []]
    return Question(messages[:-1], facts, bool(record.get("emergency")), record.get("declines") == "dose")


def sequences(text: str, size: int) -> list[str]:
    """The runs of `size` characters of a text."""
    return [text[i : i + size] for i in range(len(text) - size + 1)]


def repeated_share(text: str) -> float:
    """Share of the 4-character sequences of a text that had occurred in it before."""
    found = sequences(text, REPEATED_LENGTH)
    return 1 - len(set(found)) / len(found) if found else 0.0


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: GenerationConfig,
    chat: bool,
) -> tuple[list[AnsweredQuestion], float]:
    """(each question answered, seconds for all of them)."""
    room = prompt_room(model, settings)
    prompts = [question_ids(tokenizer, question.messages, room, chat) for question in questions]
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
    """Different 2-character sequences over all of them; one that several answers share counts in equal parts."""
    of_answers = [Counter(sequences(answer, DISTINCT_LENGTH)) for answer in answers]
    holders = Counter(sequence for of_answer in of_answers for sequence in of_answer)
    return measure(
        [sum(1 / holders[sequence] for sequence in of_answer) for of_answer in of_answers],
        [of_answer.total() for of_answer in of_answers],
    )


def answer_measures(answered: Sequence[AnsweredQuestion]) -> dict[str, Measure]:
    """The measures of answers, empty for none; each only over the questions that it can be taken on."""
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
    # Where no row is an emergency the rows were never marked, so that nothing is a false alarm either.
    if emergencies := [a for a in answered if a.emergency]:
        measures["emergencies_recognised"] = measure([a.urgent for a in emergencies])
        if others := [a for a in answered if not a.emergency]:
            measures["false_alarms"] = measure([a.urgent for a in others])
    if doses := [a for a in answered if a.dose]:
        measures["doses_declined"] = measure([a.declines_dose for a in doses])
    return measures

"""The measures of a model: bits per byte of text, answers to questions, preference between answers."""

import math
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data import Message
from med_model.generate import generate_answers, prompt_room
from med_model.loss import label_log_probs
from med_model.prompt import END_OF_TEXT, IGNORE, IM_END, encode_text, fit_answer, fit_prompt, fit_text
from med_model.urgency import is_urgent

WINDOW_OVERLAP = 0.5  # of a window is context already scored by the window before
BATCH_TOKENS = 4096
PROMPT_SHARE = 0.5  # of a pair's length at most; the rest is the answers'


class Question(NamedTuple):
    """The turns up to and with a question, and what is known of its right answer."""

    messages: list[Message]
    key_facts: Sequence[str] = ()
    emergency: bool = False  # marked as one whose answer must send to help at once


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


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """(summed log-probability in nats, number of tokens) of each row's second ids after its first."""
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    while order:
        longest = sum(map(len, rows[order[0]]))
        batch, order = order[: max(1, BATCH_TOKENS // longest)], order[max(1, BATCH_TOKENS // longest) :]
        ids = [torch.tensor(rows[i][0] + rows[i][1]) for i in batch]
        labels = [torch.tensor([IGNORE] * len(rows[i][0]) + rows[i][1]) for i in batch]
        # Filled up on the right, where causal attention never looks, so that no mask is needed.
        filler = model.config.eos_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=filler).to(model.device)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORE).to(model.device)[:, 1:]
        mask = targets != IGNORE
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        log_probs = torch.zeros(mask.shape, device=model.device)
        log_probs[mask] = label_log_probs(hidden[mask], model.get_output_embeddings().weight, targets[mask])
        for i, total, count in zip(batch, log_probs.cpu().double().sum(1).tolist(), mask.sum(1).tolist(), strict=True):
            results[i] = (total, count)
    return results


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """-log2 p(text) over its UTF-8 bytes, each text on its own after `<|endoftext|>`: comparable across tokenizers.

    A text longer than the model's positions is scored in windows that overlap by WINDOW_OVERLAP; a token counts once.
    """
    start_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    window = model.config.n_positions
    step = window - int(window * WINDOW_OVERLAP)
    rows = []
    for ids in encode_text(tokenizer, list(texts)):
        ids = [start_id, *ids]
        scored = 1
        while scored < len(ids):
            end = min(len(ids), window if scored == 1 else scored + step)
            rows.append((ids[max(0, end - window) : scored], ids[scored:end]))
            scored = end
    nats = -sum(total for total, _ in score(model, rows))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def preference_scores(model: PreTrainedModel, pairs: Sequence[Pair]) -> list[tuple[float, float, float, float]]:
    """(chosen sum, rejected sum, chosen mean, rejected mean) of log-probabilities in nats for each pair."""
    scored = score(
        model, [row for p in pairs for row in ((p.prompt_ids, p.chosen_ids), (p.prompt_ids, p.rejected_ids))]
    )
    return [
        (good, bad, good / good_count, bad / bad_count)
        for (good, good_count), (bad, bad_count) in zip(scored[::2], scored[1::2], strict=True)
    ]


def preference_measures(model: PreTrainedModel, pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of pairs whose chosen answer is the likelier one, by the sum (with its stop) and by the mean a token."""
    scores = preference_scores(model, pairs)
    return {
        "preference_pairs": len(scores),
        "preference_accuracy": sum(good > bad for good, bad, _, _ in scores) / len(scores),
        "preference_accuracy_per_token": sum(good > bad for _, _, good, bad in scores) / len(scores),
        "preference_margin": sum(good - bad for good, bad, _, _ in scores) / len(scores),
    }


def repeated_share(text: str, size: int = 4) -> float:
    """Share of the `size`-character sequences of a text that had occurred in it before."""
    grams = [text[i : i + size] for i in range(len(text) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


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
    for (messages, facts, emergency), (answer, stopped) in zip(questions, answers, strict=True):
        answer = answer.strip()
        results.append(
            AnsweredQuestion(
                question=messages[-1]["content"],
                answer=answer,
                stopped=stopped,
                repetition=repeated_share(answer),
                key_facts_found=sum(_squeezed(fact) in _squeezed(answer) for fact in facts),
                key_facts=len(facts),
                urgent=is_urgent(answer),
                emergency=emergency,
            )
        )
    return results, seconds


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def answer_measures(answered: Sequence[AnsweredQuestion]) -> dict[str, float]:
    """Means over the answers, empty for none; each measure only over the questions that it can be taken on."""
    if not answered:
        return {}
    count = len(answered)
    measures = {
        "questions": count,
        "stopped": sum(a.stopped for a in answered) / count,
        "repeated_4grams": sum(a.repetition for a in answered) / count,
        "characters": sum(len(a.answer) for a in answered) / count,
    }
    if with_facts := [a for a in answered if a.key_facts]:
        measures["with_a_key_fact"] = sum(a.key_facts_found > 0 for a in with_facts) / len(with_facts)
        measures["key_fact_recall"] = sum(a.key_facts_found for a in with_facts) / sum(a.key_facts for a in with_facts)
    # Where no row is an emergency the rows were never marked, so that nothing is a false alarm either.
    if emergencies := [a for a in answered if a.emergency]:
        others = [a for a in answered if not a.emergency]
        measures["emergencies"] = len(emergencies)
        measures["emergencies_recognised"] = sum(a.urgent for a in emergencies) / len(emergencies)
        if others:
            measures["false_alarms"] = sum(a.urgent for a in others) / len(others)
    return measures

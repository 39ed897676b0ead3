"""Measure a model on held-out texts, questions, preference pairs and multiple choice. Each figure has a 95% interval.

Reads  a model directory, and the held-out files of --data (default: the bundled files)
Writes nothing; with --json FILE, all figures and answers to FILE

    python -m med_model.measures.evaluate --model final_model__after_dpo
    python -m med_model.measures.evaluate --model my_model --data my_questions.jsonl my_pairs.jsonl --json figures.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import BASE_STOPS, CHAT_STOPS, IM_END, encode_pairs
from med_model.data.records import Choice, Pair, choice_of, document_of, pair_of
from med_model.data.split import read_all
from med_model.files import check_json_target, write_json
from med_model.generation.sampling import greedy
from med_model.language import tr
from med_model.measures.answers import AnsweredQuestion, Question, answer_measures, answer_questions, question_of
from med_model.measures.interval import Measure, measure
from med_model.measures.likelihood import choose, preference_scores, text_bits
from med_model.measures.record import new_record, options
from med_model.measures.scales import FLAW
from med_model.measures.table import print_figures
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model
from med_model.screen import say

DESCRIPTION = tr("Measure a model on held-out data, each figure with its confidence interval.")

BUNDLED = [str(file) for file in (paths.HELDOUT_TEXT, paths.EXAM, paths.HELDOUT_PAIRS, paths.CHOICES)]
MAX_NEW_TOKENS = 200  # longest answer in tokens
READERS = {"texts": document_of, "questions": question_of, "pairs": pair_of, "choices": choice_of}


class Heldout(NamedTuple):
    """Held-out records by kind. The field names are the keys of READERS."""

    texts: Sequence[str] = ()
    questions: Sequence[Question] = ()
    pairs: Sequence[Pair] = ()
    choices: Sequence[Choice] = ()


class Evaluation(NamedTuple):
    """The measures of a model by key, its answers, and the time of generation in seconds."""

    measures: dict[str, Measure]
    answers: list[AnsweredQuestion]
    seconds: float


def _kind(record: dict) -> str:
    """Return the kind of a record: the key of READERS that fits its fields."""
    if "options" in record:
        return "choices"
    if record.keys() & {"response_chosen", "chosen"}:
        return "pairs"
    return "texts" if "text" in record else "questions"


def _read_heldout_record(origin: str, record: dict) -> tuple[str, object] | None:
    """Return the kind of a record and its content, read with READERS[kind]. Return None if the content is empty."""
    kind = _kind(record)
    value = READERS[kind](origin, record)
    return (kind, value) if value else None


def read_heldout(sources: Sequence[str]) -> Heldout:
    """Return the held-out records of files, folders and globs. A file may contain records of several kinds.

    Raise UserError for a source without data, for a record with wrong fields, and if no usable record is left.
    """
    records: dict[str, list] = {kind: [] for kind in READERS}
    for kind, value in read_all(sources, _read_heldout_record):
        records[kind].append(value)
    return Heldout(**records)


def answers_in_chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a published model is a chat model.

    The generation settings of a chat model have <|im_end|> as a stop token.
    """
    stops = model.generation_config.eos_token_id
    return tokenizer.convert_tokens_to_ids(IM_END) in (stops if isinstance(stops, list) else [stops])


def pair_measures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], chat: bool
) -> dict[str, Measure]:
    """Return the preference measures as {key: measure}.

    An accuracy is the share of pairs with log p(chosen) > log p(rejected). A margin is the mean of
    log p(chosen) - log p(rejected), in nats. log p is the sum of the log-probabilities of an answer's tokens and of
    its stop token. In keys that end with `_per_token`, log p is the mean of these log-probabilities.
    `preference_accuracy_unread` is the accuracy on pairs marked `unread`: no training file has their topic.
    `preference_accuracy/NAME` is the accuracy on pairs whose rejected answer has the flaw NAME. The other measures
    cover all pairs.
    A pair is left out if its answers are equal after they are cut to fit into the model's positions. If all pairs are
    left out, return an empty dict. Raise UserError if not even an empty question fits into a prompt.
    """
    encoded, kept = [], []
    for pair in pairs:
        ids, _ = encode_pairs(tokenizer, [pair], model.config.n_positions, chat)
        encoded += ids
        kept += [pair] * len(ids)
    if not kept:
        return {}
    scores = preference_scores(model, encoded)
    # Pairs with the same chosen answer are not independent. So they form one group, and the bootstrap draws the group
    # as a whole.
    groups = [pair.chosen for pair in kept]
    right = [good > bad for good, bad, _, _ in scores]
    measures = {
        "preference_accuracy": measure(right, groups=groups),
        "preference_accuracy_per_token": measure([good > bad for _, _, good, bad in scores], groups=groups),
        "preference_margin": measure([good - bad for good, bad, _, _ in scores], groups=groups),
        "preference_margin_per_token": measure([good - bad for _, _, good, bad in scores], groups=groups),
    }
    parts = {"preference_accuracy_unread": [i for i, pair in enumerate(kept) if pair.unread]}
    for flaw in sorted({pair.flaw for pair in kept} - {""}):
        parts[FLAW + flaw] = [i for i, pair in enumerate(kept) if pair.flaw == flaw]
    for key, indices in parts.items():
        if indices:
            measures[key] = measure([right[i] for i in indices], groups=[groups[i] for i in indices])
    return measures


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Heldout,
    chat: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Evaluation:
    """Return the measures for all kinds of records in `heldout`, the answers, and the time of generation in seconds.

    Answers are decoded greedily. `max_new_tokens` is the longest answer in tokens. chat: False for a base model.
    Raise UserError as `answer_questions`, `pair_measures` and `choose` do.
    """
    measures, answered, seconds = {}, [], 0.0
    if heldout.texts:
        measures["bits_per_byte"] = measure(*zip(*text_bits(model, tokenizer, heldout.texts), strict=True))
    if heldout.questions:
        settings = greedy(tokenizer, CHAT_STOPS if chat else BASE_STOPS, max_new_tokens)
        answered, seconds = answer_questions(model, tokenizer, heldout.questions, settings, chat)
        measures |= answer_measures(answered)
    if heldout.pairs:
        measures |= pair_measures(model, tokenizer, heldout.pairs, chat)
    if heldout.choices:
        chosen = choose(model, tokenizer, heldout.choices, chat)
        right = [item.answer == option for item, option in zip(heldout.choices, chosen, strict=True)]
        measures["choice_accuracy"] = measure(right)
    return Evaluation(measures, answered, seconds)


def chance_level(choices: Sequence[Choice]) -> str:
    """Return a line with the accuracy of guessing in multiple choice: the mean of 1 / number of options."""
    chance = sum(1 / len(item.options) for item in choices) / len(choices)
    return tr("Multiple choice at chance: {chance:.1%}. A model of this size is expected to be there.", chance=chance)


@dataclass
class EvaluateArguments:
    model: str = field(metadata={"help": tr("Directory of the model to measure.")})
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Held-out files: documents, questions, preference pairs, multiple choice. The fields of a record "
                "tell its kind. Default: the bundled files."
            )
        },
    )
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": tr("Longest answer, in tokens.")})
    json: str | None = field(default=None, metadata={"help": tr("Write figures and answers to this file.")})


def main() -> None:
    (args,) = parse(EvaluateArguments, description=DESCRIPTION, docstring=__doc__)
    check_json_target(args.json)
    sources = args.data or BUNDLED
    heldout = read_heldout(sources)
    model, tokenizer = load_model(args.model)
    model.to(pick_device())
    say(NOTICE)
    result = evaluate(model, tokenizer, heldout, answers_in_chat(model, tokenizer), args.max_new_tokens)
    figures = print_figures(result.measures)
    if heldout.choices:
        say(chance_level(heldout.choices))
    if args.json:
        record = new_record(
            sources,
            {"model": figures},
            arguments=options(args),
            answers=[answer._asdict() for answer in result.answers],
        )
        write_json(args.json, record)
        say(tr("Written: {file}", file=args.json))


if __name__ == "__main__":
    run(main)

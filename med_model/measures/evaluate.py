"""Measure models on held-out data: text, questions, preference pairs and multiple choice, with 95% intervals.

Reads  model directories, the held-out files of --data, and the training files of --taught (default: the bundled files)
Writes nothing; with --json FILE, all figures and answers to FILE

    python -m med_model.measures.evaluate --model final_model__after_dpo
    python -m med_model.measures.evaluate --model my_model --data my_questions.jsonl my_pairs.jsonl --json figures.json
    python -m med_model.measures.evaluate --model sft/py/med_sft_checkpoints/checkpoint-* --chat True
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.command import parse, run
from med_model.data.prompt import IM_END
from med_model.data.records import Choice
from med_model.files import check_json_target, write_json
from med_model.generation.sampling import greedy
from med_model.language import tr
from med_model.measures.answer_measures import answer_measures, sampled_measures
from med_model.measures.answers import AnsweredQuestion, answer_questions
from med_model.measures.baseline import BUNDLED_TRAINING, Training, baseline_measures, read_training
from med_model.measures.heldout import BUNDLED, Heldout, read_heldout
from med_model.measures.interval import Measure, difference, figure, measure
from med_model.measures.likelihood import choose, text_bits
from med_model.measures.pair_measures import pair_measures
from med_model.measures.record import as_typed, new_record, options
from med_model.measures.scales import BASELINE
from med_model.measures.table import Changes, Figures, print_all
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model, sampling_defaults
from med_model.screen import say

DESCRIPTION = tr("Measure models on held-out data, each figure with its confidence interval.")

MAX_NEW_TOKENS = 200  # longest answer in tokens
SEEDS = (1, 2, 3)  # each question gets one sampled answer per seed
TAUGHT_HELP = tr(
    "Training files: SFT rows and preference pairs. The baseline and the origin of each answer come from them. "
    "Default: the bundled files, or none if --data is given."
)


class Evaluation(NamedTuple):
    """The measures of a model by key, its greedy answers, and the time to generate these answers, in seconds."""

    measures: dict[str, Measure]
    answers: list[AnsweredQuestion]
    seconds: float = 0.0


def answers_in_chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True for a chat model, but not for its checkpoints.

    The generation settings of a chat model have <|im_end|> as a stop token. A checkpoint has no such settings.
    """
    stops = model.generation_config.eos_token_id
    return tokenizer.convert_tokens_to_ids(IM_END) in (stops if isinstance(stops, list) else [stops])


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Heldout,
    chat: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
    training: Training | None = None,
) -> Evaluation:
    """Return the measures for all kinds of records in `heldout`, the greedy answers, and the time to generate them.

    An answer has at most `max_new_tokens` tokens. chat: False for a base model. training: the rows that the model was
    trained on. If they are given, the answers are compared with the answers of these rows. A chat model then also
    samples answers with the settings of the chat, once per seed of SEEDS, and the measures cover these answers too.
    Raise UserError as `answer_questions`, `pair_measures` and `choose` do.
    """
    measures, answered, seconds = {}, [], 0.0
    if heldout.texts:
        measures["bits_per_byte"] = measure(*zip(*text_bits(model, tokenizer, heldout.texts), strict=True))
    if heldout.questions:

        def ask(settings: GenerationConfig, seed: int | None = None) -> tuple[list[AnsweredQuestion], float]:
            taught = training.taught if training else None
            return answer_questions(model, tokenizer, heldout.questions, settings, chat, taught, seed)

        answered, seconds = ask(greedy(tokenizer, chat, max_new_tokens))
        measures |= answer_measures(answered)
        if training and chat:
            settings = sampling_defaults(tokenizer, chat)
            settings.max_new_tokens = max_new_tokens
            measures |= sampled_measures([answer for seed in SEEDS for answer in ask(settings, seed)[0]])
    if heldout.pairs:
        measures |= pair_measures(model, tokenizer, heldout.pairs, chat)
    if heldout.choices:
        measures |= choice_measures(heldout.choices, choose(model, tokenizer, heldout.choices, chat))
    return Evaluation(measures, answered, seconds)


def choice_measures(choices: Sequence[Choice], chosen: Sequence[int]) -> dict[str, Measure]:
    """Return two accuracies in multiple choice: for trained topics, and for topics that no training file has.

    An accuracy without questions is left out. chosen: the index of the model's option for each question.
    """
    measures = {}
    for key, unread in (("choice_accuracy", False), ("choice_accuracy_unread", True)):
        right = [c.answer == option for c, option in zip(choices, chosen, strict=True) if c.unread == unread]
        if right:
            measures[key] = measure(right)
    return measures


def chance_level(choices: Sequence[Choice]) -> str:
    """Return a line with the accuracy of guessing in multiple choice: the mean of 1 / number of options."""
    chance = sum(1 / len(item.options) for item in choices) / len(choices)
    return tr("Multiple choice at chance: {chance:.1%}.", chance=chance)


def changes(results: dict[str, Evaluation]) -> Changes:
    """Return the change of each measure from one model to the next, and from the baseline to each model.

    Leave out a measure if one of the two lacks it, or if the two differ in the number of items (for example answers)
    or of groups of items.
    """
    models = [name for name in results if name != BASELINE]
    steps = [*itertools.pairwise(models), *((BASELINE, name) for name in models if BASELINE in results)]
    found = {}
    for before, after in steps:
        old, new = results[before].measures, results[after].measures
        same = [key for key in new if key in old and new[key].amounts.shape == old[key].amounts.shape]
        found[before, after] = {
            key: difference(new[key], old[key]) for key in same if new[key].items == old[key].items
        }
    return found


def figures_of(results: dict[str, Evaluation]) -> Figures:
    """Return the value and the interval of each measure of each model."""
    return {name: {key: figure(m) for key, m in result.measures.items()} for name, result in results.items()}


def by_step(directories: Sequence[str]) -> list[str]:
    """Return the directories in the order of their training steps. If one is no checkpoint, keep the order given.

    The order given may be wrong: for `checkpoint-*`, a shell puts checkpoint-1000 before checkpoint-500.
    """
    steps = {directory: re.search(r"checkpoint-(\d+)/*$", directory) for directory in directories}
    if not all(steps.values()):
        return list(directories)
    return sorted(directories, key=lambda directory: int(steps[directory][1]))


def training_rows(taught: list[str] | None, data: list[str] | None) -> list[str]:
    """Return the files and folders of the training rows: those of --taught, if it is given.

    Without --taught and --data, return the bundled folders. With --data alone, return none.
    """
    return taught if taught is not None else [] if data else BUNDLED_TRAINING


@dataclass
class EvaluateArguments:
    model: list[str] = field(metadata={"help": tr("Directories of the models to measure, checkpoints too.")})
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Held-out files: documents, questions, preference pairs, multiple choice. The fields of a record "
                "tell its kind. Default: the bundled files."
            )
        },
    )
    taught: list[str] | None = field(default=None, metadata={"help": TAUGHT_HELP})
    chat: bool | None = field(
        default=None, metadata={"help": tr("Ask in the chat form. Default: as the model's settings say.")}
    )
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": tr("Longest answer, in tokens.")})
    json: str | None = field(default=None, metadata={"help": tr("Write figures and answers to this file.")})


def main() -> None:
    (args,) = parse(EvaluateArguments, description=DESCRIPTION, docstring=__doc__)
    check_json_target(args.json)
    sources, taught = args.data or BUNDLED, training_rows(args.taught, args.data)
    heldout = read_heldout(sources)
    training = read_training(taught) if taught else None
    say(NOTICE)
    results = {BASELINE: Evaluation(*baseline_measures(training, heldout))} if training else {}
    for directory in by_step(args.model):
        model, tokenizer = load_model(directory)
        model.to(pick_device())
        chat = answers_in_chat(model, tokenizer) if args.chat is None else args.chat
        results[as_typed(directory)] = evaluate(model, tokenizer, heldout, chat, args.max_new_tokens, training)
    figures = figures_of(results)
    print_all(figures, changes(results))
    if heldout.choices:
        say(chance_level(heldout.choices))
    if args.json:
        record = new_record(
            [*sources, *taught],
            figures,
            arguments=options(args),
            answers={name: [answer.as_json() for answer in result.answers] for name, result in results.items()},
        )
        write_json(args.json, record)
        say(tr("Written: {file}", file=args.json))


if __name__ == "__main__":
    run(main)

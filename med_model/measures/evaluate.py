"""Measure a model on held-out data: text, questions, pairs and multiple choice, each figure with its 95% interval.

Reads  a model directory and the bundled held-out files, or --data of the same shapes
Writes nothing, or every figure and answer to --json FILE

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
from med_model.data.records import Choice, LabelledPair, choice_of, document_of, labelled_pair_of
from med_model.data.split import read_all
from med_model.files import check_json_target, write_json
from med_model.generation.sampling import greedy
from med_model.measures.answers import AnsweredQuestion, Question, answer_measures, answer_questions, question_of
from med_model.measures.interval import Figure, Measure, figure, measure
from med_model.measures.likelihood import choose, preference_scores, text_bits
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model

BUNDLED = [str(file) for file in (paths.HELDOUT_TEXT, paths.EXAM, paths.HELDOUT_PAIRS, paths.CHOICES)]
MAX_NEW_TOKENS = 200


class Shown(NamedTuple):
    """How a measure is told: its title, the format of its value, and whether more is better (1) or worse (-1)."""

    title: str
    format: str
    better: int


MEASURES = {
    "bits_per_byte": Shown("留出文本/held-out bits per byte ↓", ".3f", -1),
    "key_fact_recall": Shown("要点召回/key-fact recall ↑", ".1%", 1),
    "stopped": Shown("自行停止/stopped by itself ↑", ".1%", 1),
    "repeated_4grams": Shown("重复四字串/repeated 4-grams ↓", ".1%", -1),
    "distinct_2grams": Shown("不同二字串/distinct 2-grams", ".1%", 0),
    "characters": Shown("答案字数/characters an answer", ".0f", 0),
    "emergencies_recognised": Shown("急症识别/emergencies recognised ↑", ".1%", 1),
    "false_alarms": Shown("误报急症/false alarms ↓", ".1%", -1),
    "doses_declined": Shown("不给剂量/doses declined ↑", ".1%", 1),
    "preference_accuracy": Shown("偏好准确率/preference accuracy ↑", ".1%", 1),
    "preference_accuracy_per_token": Shown("  按词元平均/mean per token ↑", ".1%", 1),
    "preference_margin": Shown("偏好间隔/preference margin, nats ↑", ".1f", 1),
    "preference_margin_per_token": Shown("  每词元/per token ↑", ".2f", 1),
    "preference_accuracy_unread": Shown("  其中没读过的主题/of topics never read ↑", ".1%", 1),
    "choice_accuracy": Shown("选择题/multiple choice ↑", ".1%", 1),
}
FLAW = "preference_accuracy/"  # before the name of a flaw


class Heldout(NamedTuple):
    """What a model is measured on."""

    texts: Sequence[str] = ()
    questions: Sequence[Question] = ()
    pairs: Sequence[LabelledPair] = ()
    choices: Sequence[Choice] = ()


class Evaluation(NamedTuple):
    """A model's measures by name, its answers, and the seconds it took to give them."""

    measures: dict[str, Measure]
    answers: list[AnsweredQuestion]
    seconds: float


def _heldout_record(where: str, record: dict) -> str | Question | LabelledPair | Choice | None:
    """A record of any of the four shapes, told apart by its fields."""
    if "options" in record:
        return choice_of(where, record)
    if record.keys() & {"response_chosen", "chosen"}:
        return labelled_pair_of(where, record)
    return document_of(where, record) if "text" in record else question_of(where, record)


def read_heldout(sources: Sequence[str]) -> Heldout:
    """The records of files of any of the four shapes, mixed as they may be."""
    records = read_all(sources, _heldout_record)
    kinds = (str, Question, LabelledPair, Choice)
    return Heldout(*([record for record in records if isinstance(record, kind)] for kind in kinds))


def answers_in_chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a published model was taught to answer: its generation settings then stop at the end of a turn."""
    stops = model.generation_config.eos_token_id
    return tokenizer.convert_tokens_to_ids(IM_END) in (stops if isinstance(stops, list) else [stops])


def pair_measures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[LabelledPair], chat: bool
) -> dict[str, Measure]:
    """How often and by how much the chosen answer is the likelier one: by the sum with its stop, and by the mean.

    Pairs of topics that nothing was read about are counted with the others and once more on their own.
    """
    encoded, kept = [], []
    for pair in pairs:
        ids, _ = encode_pairs(tokenizer, [pair[:3]], model.config.n_positions, chat)
        encoded += ids
        kept += [pair] * len(ids)
    if not kept:
        return {}
    scores = preference_scores(model, encoded)
    groups = [pair.chosen for pair in kept]  # the pairs of one question are no independent evidence
    right = [good > bad for good, bad, _, _ in scores]
    measures = {
        "preference_accuracy": measure(right, groups=groups),
        "preference_accuracy_per_token": measure([good > bad for _, _, good, bad in scores], groups=groups),
        "preference_margin": measure([good - bad for good, bad, _, _ in scores], groups=groups),
        "preference_margin_per_token": measure([good - bad for _, _, good, bad in scores], groups=groups),
    }
    parts = {"preference_accuracy_unread": [place for place, pair in enumerate(kept) if pair.unread]}
    for flaw in sorted({pair.flaw for pair in kept} - {""}):
        parts[FLAW + flaw] = [place for place, pair in enumerate(kept) if pair.flaw == flaw]
    for name, places in parts.items():
        if places:
            measures[name] = measure([right[p] for p in places], groups=[groups[p] for p in places])
    return measures


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Heldout,
    chat: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Evaluation:
    """Every measure that `heldout` has data for; questions are answered greedily."""
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


def shown_as(name: str) -> Shown:
    if name.startswith(FLAW):
        return Shown(f"  缺陷/flaw {name.removeprefix(FLAW)} ↑", ".0%", 1)
    return MEASURES[name]


def told(name: str, of: Figure) -> str:
    """A figure with its interval, as `61.3% [58.9, 63.5]`."""
    form = shown_as(name).format
    low, high = (format(end, form).removesuffix("%") for end in (of.low, of.high))
    return f"{of.value:{form}} [{low}, {high}]"


def print_figures(result: Evaluation) -> dict[str, Figure]:
    """Prints each measure with its interval and the number of items it was taken on, and returns them."""
    figures = {name: figure(of) for name, of in result.measures.items()}
    for name, of in figures.items():
        print(f"{told(name, of):<24} n = {of.n:<6,} {shown_as(name).title}")
    return figures


def chance_level(choices: Sequence[Choice]) -> str:
    """What to expect of multiple choice, in one line."""
    chance = sum(1 / len(item.options) for item in choices) / len(choices)
    return (
        f"选择题蒙对的水平/multiple choice at chance: {chance:.1%}; 这么小的模型预期就在这个水平/"
        "a model of this size is expected there"
    )


@dataclass
class EvaluateArguments:
    model: str = field(metadata={"help": "Directory of the model to measure."})
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out files: documents, questions, preference pairs, multiple choice; told apart by "
            "their fields. Default: the bundled ones."
        },
    )
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": "Longest answer, in tokens."})
    json: str | None = field(default=None, metadata={"help": "Write figures and answers to this file."})


def main() -> None:
    (args,) = parse(EvaluateArguments, description=__doc__)
    check_json_target(args.json)
    heldout = read_heldout(args.data or BUNDLED)
    model, tokenizer = load_model(args.model)
    model.to(pick_device())
    print(NOTICE)
    result = evaluate(model, tokenizer, heldout, answers_in_chat(model, tokenizer), args.max_new_tokens)
    figures = print_figures(result)
    if heldout.choices:
        print(chance_level(heldout.choices))
    if args.json:
        answers = [answer._asdict() for answer in result.answers]
        write_json(args.json, {"model": args.model, "measures": as_json(figures), "answers": answers})
        print(f"已写入/written: {args.json}")


def as_json(figures: dict[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: of._asdict() for name, of in figures.items()}


if __name__ == "__main__":
    run(main)

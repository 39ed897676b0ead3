"""Put the three models side by side: their answers to the same prompts, and the measures that fit each.

Reads  base_model__after_pretraining/, post_model__after_sft/, final_model__after_dpo/ (those that exist) and the
       bundled held-out files
Writes nothing, or everything it measured to --json FILE

    python compare_different_model.py
    python compare_different_model.py --prompt "高血压要注意什么？"
    python compare_different_model.py --prompts my_questions.txt --json comparison.json
"""

import itertools
import re
import shutil
import sys
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import BASE_STOPS, CHAT_STOPS
from med_model.data.records import Message, conversation_of
from med_model.data.sources import find_files
from med_model.data.split import read_all
from med_model.errors import UserError
from med_model.files import check_json_target, read_yaml, write_json
from med_model.generation.sampling import greedy
from med_model.measures.answers import Question, answer_questions
from med_model.measures.evaluate import (
    BUNDLED,
    MAX_NEW_TOKENS,
    MEASURES,
    Evaluation,
    as_json,
    chance_level,
    evaluate,
    read_heldout,
    shown_as,
    told,
)
from med_model.measures.interval import Figure, difference, figure, outside_noise
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model

PROMPTS = (
    "血压多高算高血压？",
    "我爸突然嘴歪、一边胳膊抬不起来，怎么办？",
    "孩子发烧到39度，要不要去医院？",
    "二甲双胍一次吃几片？",
    "痛风能不能喝啤酒？",
    "你是谁？",
)
MODELS = ("预训练/base", "SFT", "DPO/final")
PREFERENCE_PLACE = list(MEASURES).index("preference_accuracy_per_token") - 0.5  # where the lines of the flaws stand
COLUMN_GAP = 2
MIN_COLUMN = 24  # columns of the terminal below which answers are stacked instead


@dataclass
class CompareArguments:
    prompt: list[str] | None = field(
        default=None, metadata={"help": "Prompts to answer instead of the built-in ones."}
    )
    prompts: str | None = field(
        default=None, metadata={"help": "File of prompts: .txt with one a line, or question-answer rows."}
    )
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out files that the models are measured on: documents, questions, preference pairs, "
            "multiple choice. Default: the bundled ones, with the 100 questions of sft/dataset/exam.jsonl."
        },
    )
    expected: str | None = field(
        default=None,
        metadata={
            "help": "YAML file of expected values, model: {measure: [value, tolerance]}; says what lies outside them."
        },
    )
    base_model: str = field(default=str(paths.BASE_MODEL), metadata={"help": "Directory of the base model."})
    sft_model: str = field(default=str(paths.SFT_MODEL), metadata={"help": "Directory of the SFT model."})
    final_model: str = field(default=str(paths.FINAL_MODEL), metadata={"help": "Directory of the final model."})
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": "Longest answer, in tokens."})
    measures: bool = field(default=True, metadata={"help": "Also measure; --measures False only answers."})
    json: str | None = field(default=None, metadata={"help": "Write answers and measures to this file."})


def read_prompts(args: CompareArguments) -> list[list[Message]]:
    """The turns up to each question to answer; a file of prompts wins over a list of them."""
    if not args.prompts:
        return [[{"role": "user", "content": text}] for text in args.prompt or PROMPTS]
    files = find_files([args.prompts])
    if files[0].suffix == ".txt":
        lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8-sig").splitlines()]
        return [[{"role": "user", "content": line}] for line in lines if line]
    return [messages[:-1] for messages in read_all(files, conversation_of)]


def width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    return text + " " * max(0, columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    lines = [""]
    for character in re.sub(r"\n\s*\n", "\n", text):  # a base model may say little but line ends
        if character == "\n" or width(lines[-1] + character) > columns:
            lines.append("")
        if character != "\n":
            lines[-1] += character
    return lines


def print_answers(prompts: list[list[Message]], answers: dict[str, list[dict]]) -> None:
    columns = shutil.get_terminal_size((120, 24)).columns // max(1, len(answers)) - COLUMN_GAP
    for number, turns in enumerate(prompts):
        print(f"\n━━ {turns[-1]['content']}")
        cells = {
            name: of_model[number]["answer"] + ("" if of_model[number]["stopped"] else " …（未停/cut off）")
            for name, of_model in answers.items()
        }
        if columns < MIN_COLUMN:
            for name, cell in cells.items():
                print(f"[{name}] {cell}")
            continue
        print((" " * COLUMN_GAP).join(padded(f"[{name}]", columns) for name in cells))
        blocks = [wrapped(cell, columns) for cell in cells.values()]
        for line in range(max(map(len, blocks))):
            print(
                (" " * COLUMN_GAP)
                .join(padded(block[line] if line < len(block) else "", columns) for block in blocks)
                .rstrip()
            )


def verdict(name: str, change: Figure) -> str:
    """What a difference says: `+` better or `-` worse outside the noise, `~` within it; its value and interval."""
    form, better = shown_as(name).format, shown_as(name).better
    sign = "~" if not outside_noise(change) else "+" if better * change.value > 0 else "-" if better else "≠"
    low, high = (format(end, f"+{form}").removesuffix("%") for end in (change.low, change.high))
    return f"{sign} {change.value:+{form}} [{low}, {high}]"


def compare(results: dict[str, Evaluation]) -> dict[str, dict[str, Figure]]:
    """By how much each measure changed from each model to the next: a paired bootstrap on the items both have."""
    changes = {}
    for (before_name, before), (name, after) in itertools.pairwise(results.items()):
        changes[f"{before_name} → {name}"] = {
            key: difference(of, before.measures[key])
            for key, of in after.measures.items()
            if key in before.measures and of.items == before.measures[key].items
        }
    return changes


def print_measures(results: dict[str, Evaluation], changes: dict[str, dict[str, Figure]]) -> None:
    keys = dict.fromkeys(key for result in results.values() for key in result.measures)
    order = sorted(keys, key=lambda key: list(MEASURES).index(key) if key in MEASURES else PREFERENCE_PLACE)
    rows = [["", "n", *results, *changes]]
    for key in order:
        figures = {name: figure(of.measures[key]) for name, of in results.items() if key in of.measures}
        cells = [told(key, figures[name]) if name in figures else "-" for name in results]
        cells += [verdict(key, of_change[key]) if key in of_change else "-" for of_change in changes.values()]
        rows.append([shown_as(key).title, f"{max(of.n for of in figures.values()):,}", *cells])
    columns = [max(width(row[place]) for row in rows) + COLUMN_GAP for place in range(len(rows[0]))]
    print()
    for row in rows:
        print("".join(padded(cell, column) for cell, column in zip(row, columns, strict=True)).rstrip())
    print(
        "[ ] 95% 区间/interval; + 变好/better, - 变差/worse, ~ 在误差之内/within the noise (paired bootstrap); "
        "贪心解码/greedy; 基座以“问：…答：”提问/the base model is prompted 问：…答："
    )


def read_expected(name: str | None) -> dict[str, dict[str, list[float]]]:
    """[value, tolerance] by model and measure. UserError for a name that is neither, or for other than two numbers."""
    expected = read_yaml(name, "--expected") if name else {}
    for model, of_model in expected.items():
        if model not in MODELS or not isinstance(of_model, dict):
            raise UserError(f"未知模型/--expected {name}: {model} maps no measures of {', '.join(MODELS)}")
        for key, pair in of_model.items():
            if key not in MEASURES:
                raise UserError(f"未知指标/--expected {name}: {model} {key}, want one of {', '.join(MEASURES)}")
            if not isinstance(pair, list) or [type(number) in (int, float) for number in pair] != [True, True]:
                raise UserError(f"应为 [值, 容差]/--expected {name}: {model} {key}: {pair}, want [value, tolerance]")
    return expected


def outside_expected(results: dict[str, Evaluation], expected: dict[str, dict[str, list[float]]]) -> list[str]:
    """What lies further from its expected value than the tolerance, or was not measured at all, a line each."""
    outside = []
    for name, of_model in expected.items():
        measured = results[name].measures if name in results else {}
        for key, (value, tolerance) in of_model.items():
            form, found = shown_as(key).format, "未测量/not measured"
            if key in measured:
                number = figure(measured[key]).value
                if abs(number - value) <= tolerance:
                    continue
                found = format(number, form)
            outside.append(f"{name} {shown_as(key).title.strip()}: {found}, {value:{form}} ± {tolerance:{form}}")
    return outside


def main() -> None:
    (args,) = parse(CompareArguments, description=__doc__)
    check_json_target(args.json)
    prompts = read_prompts(args)
    expected = read_expected(args.expected)
    heldout = read_heldout(args.data or BUNDLED) if args.measures else None
    print(NOTICE)
    directories = (
        (args.base_model, paths.BASE_MODEL, False),
        (args.sft_model, paths.SFT_MODEL, True),
        (args.final_model, paths.FINAL_MODEL, True),
    )
    answers: dict[str, list[dict]] = {}
    results: dict[str, Evaluation] = {}
    for name, (directory, default, chat) in zip(MODELS, directories, strict=True):
        if not Path(directory).exists():
            print(f"缺少/missing: {name} {paths.shown(directory)}/: {paths.MADE_BY[default]}", file=sys.stderr)
            continue
        start = time.time()
        model, tokenizer = load_model(directory)
        model.to(pick_device())
        settings = greedy(tokenizer, CHAT_STOPS if chat else BASE_STOPS, args.max_new_tokens)
        answered, _ = answer_questions(model, tokenizer, [Question(turns) for turns in prompts], settings, chat)
        answers[name] = [answer._asdict() for answer in answered]
        if heldout:
            results[name] = evaluate(model, tokenizer, heldout, chat, args.max_new_tokens)
        print(
            f"{name}: {paths.shown(directory)}/, {model.num_parameters():,} 参数/parameters, "
            f"{time.time() - start:.1f} s"
        )
    if not answers:
        sys.exit(2)
    print_answers(prompts, answers)
    changes = compare(results)
    if results:
        print_measures(results, changes)
    if heldout and heldout.choices:
        print(chance_level(heldout.choices))
    outside = outside_expected(results, expected)
    if expected and results:
        said = "超出预期/outside what is expected" if outside else "与预期相符/as expected"
        print(f"{said} ({args.expected})", *outside, sep="\n  ")
    if args.json:
        result = {
            "arguments": asdict(args),
            "prompts": prompts,
            "answers": answers,
            "measures": {
                name: as_json({key: figure(of) for key, of in result.measures.items()})
                for name, result in results.items()
            },
            "outside_expected": outside,
            "changes": {name: as_json(of) for name, of in changes.items()},
            "measured_answers": {name: [a._asdict() for a in result.answers] for name, result in results.items()},
        }
        write_json(args.json, result)
        print(f"已写入/written: {args.json}")


if __name__ == "__main__":
    run(main)

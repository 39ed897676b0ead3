"""Put the three models side by side: their answers to the same prompts, and the measures that fit each.

Reads  base_model__after_pretraining/, post_model__after_sft/, final_model__after_dpo/ (those that exist) and the
       bundled held-out files
Writes nothing, or everything it measured to --json FILE

    python compare_different_model.py
    python compare_different_model.py --prompt "高血压要注意什么？"
    python compare_different_model.py --prompts my_questions.txt --json comparison.json
"""

import shutil
import sys
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.command import check_json_target, parse, run, write_json
from med_model.data import Message, conversation_of, document_of, find_files, preference_of, read_all, read_records
from med_model.evaluate import (
    Question,
    answer_measures,
    answer_questions,
    bits_per_byte,
    encode_pairs,
    preference_measures,
)
from med_model.model import NOTICE, greedy, load_model, pick_device
from med_model.prompt import BASE_STOPS, CHAT_STOPS

PROMPTS = (
    "血压多高算高血压？",
    "我爸突然嘴歪、一边胳膊抬不起来，怎么办？",
    "孩子发烧到39度，要不要去医院？",
    "二甲双胍一次吃几片？",
    "痛风能不能喝啤酒？",
    "你是谁？",
)
MEASURES = {  # name in the JSON: (what the table calls it, format)
    "heldout_bits_per_byte": ("留出文本/held-out bits per byte ↓", ".3f"),
    "with_a_key_fact": ("答案含要点/answers with a key fact ↑", ".0%"),
    "key_fact_recall": ("要点召回/key-fact recall ↑", ".3f"),
    "stopped": ("自行停止/stopped by itself ↑", ".0%"),
    "repeated_4grams": ("重复四字串/repeated 4-grams ↓", ".1%"),
    "emergencies_recognised": ("急症识别/emergencies recognised ↑", ".0%"),
    "false_alarms": ("误报急症/false alarms ↓", ".1%"),
    "characters": ("答案字数/characters an answer", ".0f"),
    "preference_accuracy": ("偏好准确率/preference accuracy ↑", ".1%"),
    "preference_accuracy_per_token": ("  按词元平均/mean per token ↑", ".1%"),
    "preference_margin": ("偏好间隔/preference margin, nats ↑", ".1f"),
    "seconds": ("答题用时/seconds to answer ↓", ".1f"),
}
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
    questions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Question rows that the answers are measured on (default: the 100 of sft/dataset/exam.jsonl)."
        },
    )
    text: list[str] | None = field(
        default=None, metadata={"help": "Held-out text for bits per byte (default: the bundled)."}
    )
    pairs: list[str] | None = field(
        default=None, metadata={"help": "Held-out preference pairs (default: the bundled)."}
    )
    base_model: str = field(default=str(paths.BASE_MODEL), metadata={"help": "Directory of the base model."})
    sft_model: str = field(default=str(paths.SFT_MODEL), metadata={"help": "Directory of the SFT model."})
    final_model: str = field(default=str(paths.FINAL_MODEL), metadata={"help": "Directory of the final model."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest answer, in tokens."})
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


def read_questions(sources: list) -> list[Question]:
    """Question rows; those without `key_facts` are not scored on them."""
    return [
        Question(messages[:-1], [str(fact) for fact in record.get("key_facts") or []], bool(record.get("emergency")))
        for where, record in read_records(find_files(sources))
        if (messages := conversation_of(where, record))
    ]


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool, args: CompareArguments, data: dict
) -> tuple[dict[str, float], list[dict]]:
    """(measures of one model, its answers to the measured questions)."""
    settings = greedy(tokenizer, CHAT_STOPS if chat else BASE_STOPS, args.max_new_tokens)
    answered, seconds = answer_questions(model, tokenizer, data["questions"], settings, chat)
    pairs, cut = encode_pairs(tokenizer, data["pairs"], model.config.n_positions, chat)
    measures = {
        "heldout_bits_per_byte": bits_per_byte(model, tokenizer, data["texts"]),
        **answer_measures(answered),
        **preference_measures(model, pairs),
        "answers_cut": cut,
        "seconds": seconds,
    }
    return measures, [answer._asdict() for answer in answered]


def width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    return text + " " * max(0, columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    lines = [""]
    for character in text:
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


def print_measures(measures: dict[str, dict[str, float]]) -> None:
    first = max(width(title) for title, _ in MEASURES.values()) + COLUMN_GAP
    columns = max(width(name) for name in measures) + COLUMN_GAP
    print("\n" + padded("", first) + "".join(padded(name, columns) for name in measures))
    for key, (title, form) in MEASURES.items():
        if any(key in of_model for of_model in measures.values()):
            cells = [format(of_model[key], form) if key in of_model else "-" for of_model in measures.values()]
            print(padded(title, first) + "".join(padded(cell, columns) for cell in cells))
    some = next(iter(measures.values()))
    print(
        f"{some['questions']} 题/questions, {some['preference_pairs']} 对/pairs; 贪心解码/greedy; "
        "基座以“问：…答：”提问/the base model is prompted 问：…答："
    )


def main() -> None:
    (args,) = parse(CompareArguments, description=__doc__)
    check_json_target(args.json)
    prompts = read_prompts(args)
    data = {}
    if args.measures:
        data["questions"] = read_questions(args.questions or [paths.EXAM])
        data["texts"] = read_all(args.text or [paths.HELDOUT_TEXT], document_of)
        data["pairs"] = read_all(args.pairs or [paths.HELDOUT_PAIRS], preference_of)
    print(NOTICE)
    directories = {
        "预训练/base": (args.base_model, paths.BASE_MODEL, False),
        "SFT": (args.sft_model, paths.SFT_MODEL, True),
        "DPO/final": (args.final_model, paths.FINAL_MODEL, True),
    }
    answers: dict[str, list[dict]] = {}
    measures: dict[str, dict[str, float]] = {}
    measured_answers: dict[str, list[dict]] = {}
    for name, (directory, default, chat) in directories.items():
        if not Path(directory).exists():
            print(f"缺少/missing: {name} {paths.shown(directory)}/: {paths.MADE_BY[default]}", file=sys.stderr)
            continue
        start = time.time()
        model, tokenizer = load_model(directory)
        model.to(pick_device())
        settings = greedy(tokenizer, CHAT_STOPS if chat else BASE_STOPS, args.max_new_tokens)
        answered, _ = answer_questions(model, tokenizer, [Question(turns) for turns in prompts], settings, chat)
        answers[name] = [answer._asdict() for answer in answered]
        if args.measures:
            measures[name], measured_answers[name] = measure(model, tokenizer, chat, args, data)
        print(
            f"{name}: {paths.shown(directory)}/, {model.num_parameters():,} 参数/parameters, "
            f"{time.time() - start:.1f} s"
        )
    if not answers:
        sys.exit(2)
    print_answers(prompts, answers)
    if measures:
        print_measures(measures)
    if args.json:
        result = {
            "arguments": asdict(args),
            "prompts": prompts,
            "answers": answers,
            "measures": measures,
            "measured_answers": measured_answers,
        }
        write_json(args.json, result)
        print(f"已写入/written: {args.json}")


if __name__ == "__main__":
    run(main)

"""Compare the three models: print their answers side by side, and their measures on held-out data.

Reads  base_model__after_pretraining/, post_model__after_sft/, final_model__after_dpo/, and the bundled held-out files
       and training files
Writes nothing, or all answers and figures to --json FILE

A model whose directory is missing is left out.

    python compare_different_model.py
    python compare_different_model.py --all
    python compare_different_model.py --prompt "高血压要注意什么？"
    python compare_different_model.py --prompt_file my_questions.txt --json comparison.json
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from med_model import paths
from med_model.command import parse, run
from med_model.data.records import Message, conversation_of
from med_model.data.sources import find_files
from med_model.data.split import read_all
from med_model.errors import UserError
from med_model.files import check_json_target, write_json
from med_model.generation.sampling import greedy
from med_model.language import tr
from med_model.measures.answers import AnsweredQuestion, Question, answer_questions
from med_model.measures.baseline import Training, baseline_measures, read_training
from med_model.measures.evaluate import (
    MAX_NEW_TOKENS,
    TAUGHT_HELP,
    Evaluation,
    chance_level,
    changes,
    evaluate,
    figures_of,
    training_rows,
)
from med_model.measures.expected import outside_expected, print_verdict, read_expected
from med_model.measures.heldout import BUNDLED, Heldout, read_heldout
from med_model.measures.record import new_record, options
from med_model.measures.scales import BASELINE, MODELS
from med_model.measures.table import Changes, Figures, print_all, print_answers, print_stages, print_summary
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model
from med_model.screen import say

DESCRIPTION = tr("Put the three models side by side: their answers to the same prompts, and the measures.")

PROMPTS = (
    "血压多高算高血压？",
    "我爸突然嘴歪、一边胳膊抬不起来，怎么办？",
    "孩子发烧到39度，要不要去医院？",
    "二甲双胍一次吃几片？",
    "痛风能不能喝啤酒？",
    "你是谁？",
)
DEFAULTS = {"base": paths.BASE_MODEL, "sft": paths.SFT_MODEL, "final": paths.FINAL_MODEL}


@dataclass
class CompareArguments:
    prompt: list[str] | None = field(
        default=None, metadata={"help": tr("Prompts to answer instead of the built-in ones.")}
    )
    prompt_file: str | None = field(
        default=None,
        metadata={"help": tr("File of prompts: .txt with one prompt per line, or rows of questions and answers.")},
    )
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Held-out files to measure the models on: documents, questions, preference pairs, multiple choice. "
                "Default: the bundled files, with the 400 questions of sft/dataset/exam.jsonl."
            )
        },
    )
    taught: list[str] | None = field(default=None, metadata={"help": TAUGHT_HELP})
    expected: str | None = field(
        default=None,
        metadata={"help": tr("YAML file of expected values. The comparison ends with the figures outside of them.")},
    )
    base_model: str = field(default=str(paths.BASE_MODEL), metadata={"help": tr("Directory of the base model.")})
    sft_model: str = field(default=str(paths.SFT_MODEL), metadata={"help": tr("Directory of the SFT model.")})
    final_model: str = field(default=str(paths.FINAL_MODEL), metadata={"help": tr("Directory of the final model.")})
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": tr("Longest answer, in tokens.")})
    measures: bool = field(default=True, metadata={"help": tr("Measure the models. False: only answer.")})
    all: bool = field(default=False, metadata={"help": tr("Print every measure with its interval.")})
    json: str | None = field(default=None, metadata={"help": tr("Write answers and figures to this file.")})


def read_prompts(args: CompareArguments) -> list[list[Message]]:
    """Return the messages of each prompt.

    --prompt_file overrides --prompt. So --prompt_file also replaces the prompts of a --config file.
    Raise UserError as `find_files` and `read_all` do.
    """
    if not args.prompt_file:
        return [[{"role": "user", "content": text}] for text in args.prompt or PROMPTS]
    files = find_files([args.prompt_file])
    if files[0].suffix == ".txt":
        lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8-sig").splitlines()]
        return [[{"role": "user", "content": line}] for line in lines if line]
    return [messages[:-1] for messages in read_all(files, conversation_of)]


def answer_and_measure(
    args: CompareArguments, prompts: list[list[Message]], heldout: Heldout, training: Training | None
) -> tuple[dict[str, list[AnsweredQuestion]], dict[str, Evaluation]]:
    """Return two dicts with the keys base, sft and final: answers to the prompts, and measures on the held-out data.

    Leave out a model whose directory is missing, and print the command that makes the directory.
    Raise UserError as `load_model`, `answer_questions` and `evaluate` do.
    """
    answers, results = {}, {}
    directories = {"base": args.base_model, "sft": args.sft_model, "final": args.final_model}
    for key, directory in directories.items():
        title, shown = MODELS[key], paths.shown(directory)
        if not Path(directory).exists():
            command = paths.MADE_BY[DEFAULTS[key]]
            line = tr(
                "{model}: no model in {directory}/. Make it: {command}", model=title, directory=shown, command=command
            )
            print(line, file=sys.stderr)
            continue
        start, chat = time.time(), key != "base"
        model, tokenizer = load_model(directory)
        model.to(pick_device())
        settings = greedy(tokenizer, chat, args.max_new_tokens)
        questions = [Question(turns) for turns in prompts]
        answers[key], _ = answer_questions(model, tokenizer, questions, settings, chat)
        results[key] = evaluate(model, tokenizer, heldout, chat, args.max_new_tokens, training)
        size, seconds = model.num_parameters(), time.time() - start
        say(
            tr(
                "{model}: {directory}/, {size:,} parameters, {seconds:.1f} s",
                model=title,
                directory=shown,
                size=size,
                seconds=seconds,
            )
        )
    return answers, results


def print_measures(figures: Figures, differences: Changes, every: bool) -> None:
    """Print the table of the measures, what each stage changed, and how the values were measured.

    every: print each measure with its interval, not only those of the summary.
    """
    say()
    print_table = print_all if every else print_summary
    print_table(figures, differences)
    print_stages(figures, differences)
    say()
    form = "问：…答："
    say(
        tr(
            '"same" means within the noise (95% paired bootstrap). Greedy decoding. Base is asked {form}',
            form=form,
        )
    )
    if BASELINE in figures:
        say(
            tr(
                "Baseline, without any learning: a lexical search (BM25) over the training questions, and for "
                "pairs a classifier of the answers' characters."
            )
        )


def main() -> None:
    (args,) = parse(CompareArguments, description=DESCRIPTION, docstring=__doc__)
    if args.all and not args.measures:
        raise UserError(tr("--all prints measures: leave out --measures False."))
    check_json_target(args.json)
    prompts = read_prompts(args)
    expected = read_expected(args.expected) if args.expected else {}
    sources = (args.data or BUNDLED) if args.measures else []
    heldout = read_heldout(sources) if sources else Heldout()
    taught = training_rows(args.taught, args.data) if sources else []
    training = read_training(taught) if taught else None
    say(NOTICE)
    answers, results = answer_and_measure(args, prompts, heldout, training)
    if not answers:
        sys.exit(2)
    if training:
        results = {BASELINE: Evaluation(*baseline_measures(training, heldout)), **results}
    cells = {
        key: [a.answer if a.stopped else tr("{answer} … (cut off)", answer=a.answer) for a in answered]
        for key, answered in answers.items()
    }
    print_answers([turns[-1]["content"] for turns in prompts], cells)
    figures = figures_of(results)
    differences = changes(results)
    outside = outside_expected(figures, expected) if sources else []
    if sources:
        print_measures(figures, differences, args.all)
        if args.all and heldout.choices:
            say(chance_level(heldout.choices))
        if expected:
            print_verdict(outside, args.expected)
    if args.json:
        groups = figures | {f"{before} -> {after}": change for (before, after), change in differences.items()}
        record = new_record(
            [*sources, *taught],
            groups if sources else {},
            arguments=options(args),
            prompts=prompts,
            answers={key: [answer.as_json() for answer in answered] for key, answered in answers.items()},
            measured_answers={key: [a.as_json() for a in result.answers] for key, result in results.items()},
            outside_expected=[row._asdict() for row in outside],
        )
        write_json(args.json, record)
        say(tr("Written: {file}", file=args.json))


if __name__ == "__main__":
    run(main)

"""Build the three bundled data sets from corpus/knowledge/*.yaml, one hand-written file per department.

Reads  corpus/knowledge/*.yaml and corpus/{vague,turns,out_of_scope}.yaml
Writes pre_training/dataset/, sft/dataset/ and dpo/dataset/ as .jsonl files, with the same bytes every time

    python corpus/build.py                                          # check everything, then build
    python corpus/build.py --check corpus/knowledge/cardiology.yaml # check one file while you write it
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import yaml

from checks import check_corpus
from med_model import paths
from med_model.command import examples, run
from med_model.data.records import pair_of
from med_model.files import read_yaml
from med_model.language import tr
from med_model.screen import say
from rows import Files, Written, rows_by_file
from text import characters

# `print_rows` prints the number of rows in each of these paths. `paths.EXAM` is not in the list, because each of
# its rows is also in one of the held-out paths of the list.
COUNTED = (
    paths.PRETRAINING_DATA.parent,
    paths.SFT_DATA,
    paths.HELDOUT_QUESTIONS,
    paths.HELDOUT_REGISTERS,
    paths.HELDOUT_TURNS,
    paths.HELDOUT_OUT_OF_SCOPE,
    paths.CHOICES,
    paths.DPO_DATA,
    paths.HELDOUT_PAIRS,
)


def read_departments(files: list[Path]) -> list[dict]:
    return [read_yaml(str(file), "--check") for file in files]


def print_knowledge(departments: list[dict]) -> None:
    """Print counts of the hand-written texts, for example of departments, topics, articles, answers and conversations.

    Each hand-written bad answer has one named flaw. For each flaw, print how many of these answers are longer than the
    good answer to the same question.
    """
    topics = [topic for department in departments for topic in department["topics"]]
    articles = [characters(topic["article"]) for topic in topics if "article" in topic]
    questions = [question for topic in topics for question in topic.get("questions", [])]
    heldout = sum(bool(topic.get("held_out")) for topic in topics)
    say(
        tr(
            "{departments} departments, {trained} topics for training, {heldout} held-out topics",
            departments=len(departments),
            trained=len(topics) - heldout,
            heldout=heldout,
        )
    )
    say(
        tr(
            "{articles} articles with {characters:,} characters, {mean:,.0f} on average; "
            "{answers:,} answers, {conversations} conversations",
            articles=len(articles),
            characters=sum(articles),
            mean=sum(articles) / max(1, len(articles)),
            answers=len(questions),
            conversations=sum(len(topic.get("conversations", [])) for topic in topics),
        )
    )
    kinds = Counter(topic["kind"] for topic in topics)
    say(tr("Topics per kind: {kinds}", kinds=", ".join(f"{kind} {count}" for kind, count in kinds.items())))
    say(
        tr(
            "{emergency} answers to an emergency, {declining} answers that decline a dose or a diagnosis",
            emergency=sum(bool(question.get("emergency")) for question in questions),
            declining=sum("declines" in question for question in questions),
        )
    )
    flaws = Counter(question["rejected"]["flaw"] for question in questions)
    longer = Counter(q["rejected"]["flaw"] for q in questions if len(q["rejected"]["text"]) > len(q["answer"]))
    say(
        tr(
            "Written bad answers that are longer than the good one: {shares}",
            shares=", ".join(f"{flaw} {longer[flaw]}/{count}" for flaw, count in flaws.items()),
        )
    )


def print_rows(files: Files) -> None:
    """Print the number of rows in each path of `COUNTED`.

    Also print the share of preference pairs whose chosen answer is shorter than the rejected answer: first for all
    pairs, then for each flaw of the rejected answer.
    """
    for part in COUNTED:
        count = sum(len(rows) for path, rows in files.items() if path.is_relative_to(part))
        say(tr("{part}: {count:,} rows", part=paths.shown(part), count=count))
    rows = [row for path, rows in files.items() if path.is_relative_to(paths.DPO_DATA.parent) for row in rows]
    pairs = [pair for row in rows if (pair := pair_of("", row))]
    shorter = [len(pair.chosen) < len(pair.rejected) for pair in pairs]
    share = sum(shorter) / len(pairs)
    say(tr("{count:,} pairs, the chosen answer is shorter in {share:.0%}", count=len(pairs), share=share))
    for flaw in sorted({pair.flaw for pair in pairs}):
        selected = [short for pair, short in zip(pairs, shorter, strict=True) if pair.flaw == flaw]
        share = sum(selected) / len(selected)
        say(
            tr(
                "Flaw {flaw}: {count:,} pairs, the chosen answer is shorter in {share:.0%}",
                flaw=flaw,
                count=len(selected),
                share=share,
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=tr("Check the knowledge, and build the data sets of the stages from it."),
        epilog=examples(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--check", type=Path, nargs="+", help=tr("Check these files only and build nothing."))
    parser.add_argument(
        "--root", type=Path, default=paths.ROOT, help=tr("Write below this folder. Default: the project.")
    )
    args = parser.parse_args()

    departments = read_departments(args.check or sorted(paths.KNOWLEDGE.glob("*.yaml")))
    if faults := check_corpus(departments):
        print(*faults, tr("{count} faults", count=len(faults)), sep="\n", file=sys.stderr)
        sys.exit(2)
    print_knowledge(departments)
    if args.check:
        say(tr("No faults in {files}.", files=", ".join(file.name for file in args.check)))
        return
    sources = (paths.VAGUE_SENTENCES, paths.TURN_PHRASES, paths.OUT_OF_SCOPE)
    written = Written(*(yaml.safe_load(file.read_text(encoding="utf-8")) for file in sources))
    files = rows_by_file(departments, written)
    print_rows(files)
    for path, rows in files.items():
        target = args.root / path.relative_to(paths.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        target.write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(main)

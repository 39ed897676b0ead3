"""Study how many wordings per answer a model needs, and what more topics change.

Reads  the files of the demo (configs/demo/sft.yaml): documents, SFT rows of one question each, held-out questions
Writes one record per cell to --folder (default: results/study/); a cell is a number of wordings, of topics, and a seed

Each cell trains a tokenizer, a base model and an SFT model of its own. A cell that has a record is not run again.

    python benchmarks/study.py
    python benchmarks/study.py --cells 1
    python benchmarks/study.py --cells 0
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cells import SEEDS, WORDINGS, Cell, Texts, all_cells, read_texts
from inputs import run_script
from med_model import paths
from med_model.command import parse, run
from med_model.files import write_json
from med_model.language import tr
from med_model.measures.evaluate import evaluate
from med_model.measures.heldout import read_heldout
from med_model.measures.interval import figure
from med_model.measures.record import check_record, new_record
from med_model.measures.scales import scale
from med_model.measures.table import print_rows
from med_model.model.directory import load_model
from med_model.screen import say

DESCRIPTION = tr("Study recall and bits per byte against the number of wordings per answer and of topics.")

PASSES = 3.0  # passes over the rows with the largest number of wordings; fewer wordings are read more often
WANTED_RECALL = 0.85
MEASURES = ("bits_per_byte", "key_fact_recall")
MODEL = "sft"  # the group of the figures in a record


@dataclass
class StudyArguments:
    cells: int | None = field(
        default=None, metadata={"help": tr("Run at most this many of the missing cells. Default: all of them.")}
    )
    folder: str = field(default=str(paths.ROOT / "results" / "study"), metadata={"help": tr("Folder of the records.")})


def train_models(part: Texts, passes: float, seed: int, folder: Path) -> None:
    """Write the records, the tokenizer, the base model and the SFT model of a cell into `folder`.

    passes: the number of passes of SFT. Raise UserError if a stage fails.
    """
    for name, records in part._asdict().items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    documents, rows, questions = (folder / f"{name}.jsonl" for name in part._fields)
    run_script("pre_training/py/train_tokenizer.py", [documents, rows], output_model=folder / "tokenizer")
    run_script(
        "pre_training/py/run_pretraining.py",
        [documents],
        eval_data=paths.HELDOUT_TEXT,
        input_model=folder / "tokenizer",
        output_model=folder / "base",
        output_dir=folder / "base_checkpoints",
        seed=seed,
    )
    run_script(
        "sft/py/sft_train.py",
        [rows],
        eval_data=questions,
        text=documents,
        input_model=folder / "base",
        output_model=folder / MODEL,
        output_dir=folder / "sft_checkpoints",
        num_train_epochs=passes,
        seed=seed,
    )


def run_cell(cell: Cell, texts: Texts, sources: list[str]) -> dict:
    """Return the record of a cell. Raise UserError if a stage fails."""
    start, part = time.time(), texts.part(cell)
    passes = round(PASSES * len(texts.part(cell._replace(wordings=WORDINGS[-1])).rows) / len(part.rows), 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_models(part, passes, cell.seed, folder)
        model, tokenizer = load_model(str(folder / MODEL))
        heldout = read_heldout([str(paths.HELDOUT_TEXT), str(folder / "questions.jsonl")])
        measures = evaluate(model, tokenizer, heldout, chat=True).measures
    return new_record(
        sources,
        {MODEL: {key: figure(measures[key]) for key in MEASURES}},
        cell=cell._asdict(),
        topics=len({row["topic"] for row in part.rows}),
        answers=len({row["item"] for row in part.rows}),
        rows=len(part.rows),
        passes=passes,
        seconds=round(time.time() - start),
    )


def logistic_fit(sizes: Sequence[float], shares: Sequence[float]) -> tuple[float, float]:
    """Fit share = 1 / (1 + exp(-(start + slope x ln(size)))) by least squares on the log-odds. Return start, slope."""
    odds = [math.log(share / (1 - share)) for share in np.clip(shares, 0.005, 0.995)]
    slope, start = np.polyfit(np.log(sizes), odds, 1)
    return float(start), float(slope)


def wanted_size(start: float, slope: float, share: float) -> float:
    """Return the size at which the fitted curve reaches a share."""
    return math.exp((math.log(share / (1 - share)) - start) / slope)


def print_curve(records: dict[Cell, dict], of: str, sizes: dict[Cell, int]) -> None:
    """Print the mean of each measure over the seeds, and the range, for each size. sizes: {cell: size}."""
    rows = [[of, *(scale(key).title for key in MEASURES)]]
    for size in sorted(set(sizes.values())):
        found = [records[cell]["figures"][MODEL] for cell in sizes if sizes[cell] == size]
        rows.append([f"{size:,}"])
        for key in MEASURES:
            values, form = [figures[key]["value"] for figures in found], scale(key).format
            rows[-1].append(f"{statistics.mean(values):{form}} ({min(values):{form}} – {max(values):{form}})")
    say()
    print_rows(rows)


def print_study(records: dict[Cell, dict]) -> None:
    """Print a curve over the wordings and one over the topics, and the number of wordings for WANTED_RECALL."""
    by_wordings = {cell: cell.wordings for cell in records if cell.share == 1}
    by_topics = {cell: records[cell]["topics"] for cell in records if cell.wordings == WORDINGS[-1]}
    print_curve(records, tr("wordings per answer"), by_wordings)
    print_curve(records, tr("topics"), by_topics)
    say()
    for seed in SEEDS:
        cells = [cell for cell in by_wordings if cell.seed == seed]
        if len(cells) < len(WORDINGS):
            continue
        recall = [records[cell]["figures"][MODEL]["key_fact_recall"]["value"] for cell in cells]
        wordings = wanted_size(*logistic_fit([cell.wordings for cell in cells], recall), WANTED_RECALL)
        say(
            tr(
                "Seed {seed}: a fitted curve reaches a key-fact recall of {recall:.0%} at {wordings:.0f} wordings "
                "per answer.",
                seed=seed,
                recall=WANTED_RECALL,
                wordings=wordings,
            )
        )


def main() -> None:
    (args,) = parse(StudyArguments, description=DESCRIPTION, docstring=__doc__)
    folder = Path(args.folder)
    texts, sources = read_texts()
    missing = [cell for cell in all_cells() if not (folder / cell.file).exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(missing[: args.cells], 1):
        say(tr("{number} of {count} missing cells: {file}", number=number, count=len(missing), file=cell.file))
        record = run_cell(cell, texts, sources)
        write_json(folder / cell.file, record)
        say("  " + tr("{seconds:,} s", seconds=record["seconds"]))
    records = {}
    for cell in all_cells():
        if (folder / cell.file).exists():
            records[cell] = json.loads((folder / cell.file).read_text(encoding="utf-8"))
            check_record(records[cell])
    print_study(records)


if __name__ == "__main__":
    run(main)

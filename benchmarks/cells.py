"""Choose the records of each cell of the study: a number of wordings per answer, a share of the topics, and a seed."""

import itertools
import random
from collections import defaultdict
from typing import NamedTuple

from med_model.data.split import read_all
from med_model.files import read_yaml

WORDINGS = (1, 2, 3, 4, 6, 12, 24)  # training wordings per answer, with all topics
SHARES = (0.1, 1 / 3)  # shares of the topics, with the largest number of wordings
SEEDS = (1, 2, 3)
SOURCES = ("text", "data", "eval_data")  # the keys of the demo's config for SFT


class Cell(NamedTuple):
    wordings: int
    share: float  # of the topics
    seed: int

    @property
    def file(self) -> str:
        return f"{self.wordings}_wordings_{100 * self.share:.0f}_percent_of_topics_seed_{self.seed}.json"


class Texts(NamedTuple):
    """Records as dicts, one per line of their files. All are about topics that have a document."""

    documents: list[dict]
    rows: list[dict]  # SFT rows of one question
    questions: list[dict]  # held-out questions

    def part(self, cell: Cell) -> "Texts":
        """Return the records of a cell: of some topics, and with some wordings per answer.

        The seed draws both. With the same seed, a larger cell contains all records of a smaller one.
        """
        topics = sorted({row["topic"] for row in self.rows})
        random.Random(f"{cell.seed} topics").shuffle(topics)
        kept = set(topics[: max(1, round(cell.share * len(topics)))])
        wordings = defaultdict(list)
        for row in self.rows:
            wordings[row["item"]].append(row)
        for item, found in wordings.items():
            random.Random(f"{cell.seed} {item}").shuffle(found)
        rows = [row for found in wordings.values() for row in found[: cell.wordings]]
        return Texts(*([record for record in part if record["topic"] in kept] for part in self._replace(rows=rows)))


def all_cells() -> list[Cell]:
    """Return the cells, one seed after the other: a study that is stopped early has whole curves of a seed."""
    sizes = [*((count, 1.0) for count in WORDINGS), *((WORDINGS[-1], share) for share in SHARES)]
    return [Cell(*size, seed) for seed, size in itertools.product(SEEDS, sizes)]


def read_texts() -> tuple[Texts, list[str]]:
    """Return the records of the demo, and their files."""
    demo = read_yaml("configs/demo/sft.yaml", "--config")
    documents, data, eval_data = (read_all(demo[key], lambda _, record: record) for key in SOURCES)
    topics = {document["topic"] for document in documents}
    rows, questions = (
        [row for row in records if "instruction" in row and row["topic"] in topics] for records in (data, eval_data)
    )
    return Texts(documents, rows, questions), [file for key in SOURCES for file in demo[key]]

"""Read the texts, SFT rows and preference pairs. Train a tokenizer on the texts, and make an untrained model."""

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from med_model import paths
from med_model.data.records import Message, Pair, conversation_of, document_of, pair_of
from med_model.data.split import read_all, read_split
from med_model.errors import UserError
from med_model.model.gpt2 import new_model

SEED = 42


@dataclass
class Inputs:
    sources: list[str]  # files and folders of the data
    folder: Path  # has the tokenizer, the model and the temporary files of the trainings
    tokenizer: Path
    base_model: Path  # untrained, because the speed does not depend on the values of the weights
    texts: list[str]
    heldout: list[str]
    conversations: list[list[Message]]
    pairs: list[Pair]


def read_inputs(data: list[str] | None, megabytes: float, heldout_bytes: int, folder: Path) -> Inputs:
    """Read the data, and write a tokenizer and an untrained model to `folder`.

    data: files of documents, or one folder with pretrain/, dev/, sft/train.jsonl and dpo/train.jsonl. None: the
    bundled data. Files of documents have no SFT rows and no preference pairs, so the bundled ones are used.
    megabytes: the largest size of the text for training the tokenizer, in MB.
    heldout_bytes: the smallest size of the held-out text, in bytes of UTF-8. If there is less text, all of it is used.
    Raise UserError if the data cannot be read or the tokenizer cannot be trained.
    """
    texts, heldout, rows, pairs = data, None, str(paths.SFT_DATA), str(paths.DPO_DATA)
    if data and (Path(data[0]) / "pretrain").is_dir():
        root = Path(data[0])
        texts, heldout = [str(root / "pretrain")], [str(root / "dev")]
        rows, pairs = str(root / "sft" / "train.jsonl"), str(root / "dpo" / "train.jsonl")
    bundled = (paths.PRETRAINING_DATA, paths.HELDOUT_TEXT)
    documents, heldout_documents = read_split(texts, heldout, bundled, document_of, str, None, SEED)
    conversations, preferences = read_all([rows], conversation_of), read_all([pairs], pair_of)
    for records in (documents, heldout_documents, conversations, preferences):
        random.Random(SEED).shuffle(records)
    texts = texts or [str(paths.PRETRAINING_DATA)]
    heldout = heldout or ([] if data else [str(paths.HELDOUT_TEXT)])

    train_tokenizer(texts, megabytes, folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    new_model(tokenizer, dropout=0.0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return Inputs(
        sources=[*texts, *heldout, rows, pairs],
        folder=folder,
        tokenizer=folder / "tokenizer",
        base_model=folder / "base",
        texts=documents,
        heldout=last_bytes(heldout_documents, heldout_bytes),
        conversations=conversations,
        pairs=preferences,
    )


def last_bytes(texts: list[str], count: int) -> list[str]:
    """Return the last texts of the list, the last one first, with at least `count` bytes in all.

    Return all texts if they have fewer bytes. With the data of docs/en/speed.md, the training settings were chosen on
    the first texts of the list. On those texts this project would look better than it is.
    """
    kept, size = [], 0
    for text in reversed(texts):
        if size < count:
            kept.append(text)
            size += len(text.encode())
    return kept


def train_tokenizer(texts: list[str], megabytes: float, output: Path) -> None:
    run_script("pre_training/py/train_tokenizer.py", texts, max_megabytes=megabytes, output_model=output)


def run_script(script: str, data: Sequence[str | Path], **options: object) -> None:
    """Run a script of a stage. Raise UserError with its message if it fails."""
    words = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())
    command = [sys.executable, str(paths.ROOT / script), "--data", *map(str, data), *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise UserError(done.stderr.strip())

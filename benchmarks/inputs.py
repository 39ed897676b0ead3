"""What the benchmark runs on: texts, rows and pairs, a tokenizer trained on them and an untrained model."""

import importlib.util
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from med_model import paths
from med_model.data.records import Message, conversation_of, document_of, preference_of
from med_model.data.split import read_all, read_split
from med_model.errors import UserError

SEED = 42


@dataclass
class Inputs:
    """The same for every engine."""

    folder: Path  # for what engines write
    tokenizer: Path
    base_model: Path  # without training: speed does not depend on what the weights say
    texts: list[str]
    heldout: list[str]
    conversations: list[list[Message]]
    pairs: list[tuple[list[Message], str, str]]


def stage(script: str):
    """A training script of the project as a module."""
    name = Path(script).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, paths.ROOT / script)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def read_inputs(sources: list[str] | None, megabytes: float, heldout_bytes: int, folder: Path) -> Inputs:
    """Reads the data, trains a tokenizer on it (`megabytes` of it) and lays an untrained model beside it.

    `sources`: documents, or one folder with pretrain/, dev/, sft/train.jsonl and dpo/train.jsonl; None: the bundled.
    """
    texts, heldout, rows, pairs = sources, None, [paths.SFT_DATA], [paths.DPO_DATA]
    if sources and (Path(sources[0]) / "pretrain").is_dir():
        data = Path(sources[0])
        texts, heldout = [data / "pretrain"], [data / "dev"]
        rows, pairs = [data / "sft" / "train.jsonl"], [data / "dpo" / "train.jsonl"]
    bundled = (paths.PRETRAINING_DATA, paths.HELDOUT_TEXT)
    documents, heldout_documents = read_split(texts, heldout, bundled, document_of, None, SEED)
    conversations, preferences = read_all(rows, conversation_of), read_all(pairs, preference_of)
    for records in (documents, heldout_documents, conversations, preferences):
        random.Random(SEED).shuffle(records)
    kept, size = [], 0
    for text in reversed(heldout_documents):  # the recipe was searched on the first ones
        if size < heldout_bytes:
            kept.append(text)
            size += len(text.encode())

    train_tokenizer(texts or [paths.PRETRAINING_DATA], megabytes, folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = stage("pre_training/py/run_pretraining.py").new_model(tokenizer, dropout=0.0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    return Inputs(folder, folder / "tokenizer", folder / "base", documents, kept, conversations, preferences)


def train_tokenizer(texts: list, megabytes: float, output: Path) -> None:
    script = [sys.executable, str(paths.ROOT / "pre_training/py/train_tokenizer.py")]
    options = ["--data", *map(str, texts), "--max_megabytes", str(megabytes), "--output_model", str(output)]
    done = subprocess.run([*script, *options], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise UserError(done.stderr.strip())

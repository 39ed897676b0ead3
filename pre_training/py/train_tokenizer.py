"""Train the Chinese medical byte-level BPE tokenizer (20,000 tokens).

Reads  documents with a `text` field, or conversations (default: the bundled pre_training/ and sft/ training sets,
       since people ask in words that articles do not use)
Writes pre_training/py/med_tokenizer/

    python pre_training/py/train_tokenizer.py
    python pre_training/py/train_tokenizer.py --data my_texts/ --overwrite
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, PAD
from med_model.data.records import texts_of
from med_model.data.sources import find_files, read_records
from med_model.errors import UserError
from med_model.files import replace_directory
from med_model.model.directory import check_replaceable

# The pattern that llama.cpp knows as `deepseek-coder`: line ends; words; punctuation; runs of Han; single digits.
# Applied one after the other, each to what the ones before left together: 患者服用|aspirin|片|，|高血压
SPLITS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
# 8 hanzi. Uncapped, boilerplate sentences become tokens; capped at 4 hanzi a held-out text needs a sixth more tokens.
MAX_TOKEN_BYTES = 24
# What stands in the corpus less often is not met often enough to be learnt. On three departments of the bundled data
# unseen wordings found their answer in 76% at 12 (2,830 tokens), in 69% at 4 (6,275 tokens), all else equal.
MIN_FREQUENCY = 12


@dataclass
class TokenizerArguments:
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text to train on: files, folders, globs (.json .jsonl .csv .parquet .txt) or "
            "hf://datasets/OWNER/NAME/FILE. Default: the bundled set."
        },
    )
    output_model: str = field(default=str(paths.TOKENIZER), metadata={"help": "Directory to write the tokenizer to."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing --output_model."})
    vocab_size: int = field(default=20_000, metadata={"help": "Tokens, special ones and the 256 bytes included."})
    max_megabytes: float = field(
        default=100.0,
        metadata={"help": "A larger corpus is sampled down to this (about 45 MB of memory for each MB)."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})


class Corpus:
    """An iterator over the lines of the files that never holds them; counts what it gave.

    A line that stands several times counts once (one answer serves many wordings of a question): else its clauses
    would be frequent enough to become tokens. Tokens never cross a line end, so lines lose nothing.
    """

    def __init__(self, files: list[Path], max_bytes: float, seed: int):
        # Records are a little longer on disk than their text, so that a corpus at the limit is kept whole.
        self.share = min(1.0, max_bytes / sum(file.stat().st_size for file in files))
        self.files, self.max_bytes, self.seed = files, max_bytes, seed
        self.lines = self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        choose = random.Random(self.seed)
        seen: set[int] = set()
        for where, record in read_records(self.files):
            if choose.random() >= self.share:
                continue
            for line in "\n".join(texts_of(where, record)).split("\n"):
                if line and hash(line) not in seen and self.bytes < self.max_bytes:
                    seen.add(hash(line))
                    self.lines += 1
                    self.bytes += len(line.encode())
                    yield line


def byte_level_bpe() -> Tokenizer:
    """An untrained tokenizer: lossless for every text, since any byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def peak_megabytes() -> float | None:
    """Peak memory of this process in MB; None on Windows, which has no `resource`."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # bytes on macOS, kilobytes on Linux


def main() -> None:
    (args,) = parse(TokenizerArguments, description=__doc__)
    output = Path(args.output_model)
    check_replaceable(output, args.overwrite, marker="tokenizer.json")
    if (output / "config.json").exists():
        raise UserError(f"{paths.shown(output)} is a model directory: choose another --output_model")
    specials = [PAD, END_OF_TEXT, IM_START, IM_END]
    if args.vocab_size < 256 + len(specials):
        raise UserError(
            f"--vocab_size {args.vocab_size}: 256 bytes and {len(specials)} special tokens need {256 + len(specials)}"
        )
    corpus = Corpus(
        find_files(args.data or [paths.PRETRAINING_DATA, paths.SFT_DATA]), args.max_megabytes * 1e6, args.seed
    )

    start = time.time()
    tokenizer = byte_level_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    seconds = time.time() - start
    if not corpus.lines:
        raise UserError(f"没有文本/no text in {', '.join(map(str, corpus.files[:3]))}: every record is blank")

    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[IM_START, IM_END],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT_TEMPLATE
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    made.save_pretrained(partial)
    report = {"lines": corpus.lines, "bytes": corpus.bytes, "seconds": round(seconds, 2), "vocabulary": len(made)}
    report |= {"sampled_share": round(corpus.share, 4), "max_token_bytes": MAX_TOKEN_BYTES, "seed": args.seed}
    report["peak_megabytes"] = peak_megabytes()
    (partial / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    replace_directory(partial, output)

    sampled = (
        "" if corpus.share == 1.0 else f"（抽样/sampled {corpus.share:.1%}, --max_megabytes {args.max_megabytes:g}）"
    )
    print(f"语料/corpus: {corpus.lines:,} 行/lines, {corpus.bytes / 1e6:.2f} MB{sampled}; {seconds:.1f} s")
    print(f"词表/vocabulary: {len(made):,} -> {paths.shown(output)}/")
    if len(made) < args.vocab_size:
        print(
            f"语料只够 {len(made):,} 个词元，不到 {args.vocab_size:,}：词元至少要出现 {MIN_FREQUENCY} 次，"
            f"文本更多，词表更大。\nThis corpus supports {len(made):,} tokens, not {args.vocab_size:,}: "
            f"a token must occur {MIN_FREQUENCY} times. More text gives more."
        )


if __name__ == "__main__":
    run(main)

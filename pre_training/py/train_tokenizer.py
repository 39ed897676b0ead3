"""Train the Chinese medical byte-level BPE tokenizer (by default at most 20,000 tokens).

Reads  documents with a `text` field, or conversations (default: the bundled pre_training/ and sft/ training sets)
Writes pre_training/py/med_tokenizer/

The default includes conversations, because questions use other words than documents.

    python pre_training/py/train_tokenizer.py
    python pre_training/py/train_tokenizer.py --data my_texts/ --overwrite
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from med_model import paths
from med_model.command import parse, run
from med_model.data.bpe import BYTES, MAX_TOKEN_CHARACTERS, MIN_FREQUENCY, SPECIAL_TOKENS, train_bpe
from med_model.data.records import texts_of
from med_model.data.sources import find_files, read_records
from med_model.errors import UserError
from med_model.files import write_beside, write_json
from med_model.language import tr
from med_model.model.directory import check_replaceable
from med_model.screen import say

DESCRIPTION = tr("Train the Chinese medical byte-level BPE tokenizer.")

LONGEST_RUN = 1000  # characters; training takes quadratic time in the length of a text without spaces and marks


@dataclass
class TokenizerArguments:
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Training data: files, folders, globs (.json .jsonl .csv .parquet .txt) or "
                "hf://datasets/OWNER/NAME/FILE. Default: the bundled set."
            )
        },
    )
    output_model: str = field(
        default=str(paths.TOKENIZER), metadata={"help": tr("Directory to write the tokenizer to.")}
    )
    overwrite: bool = field(default=False, metadata={"help": tr("Replace an existing --output_model.")})
    vocab_size: int = field(
        default=20_000, metadata={"help": tr("Number of tokens, with the 256 bytes and the special tokens.")}
    )
    max_megabytes: float = field(
        default=100.0,
        metadata={
            "help": tr("Sample a larger corpus down to this size (training takes about 45 MB of memory per MB).")
        },
    )
    seed: int = field(default=42, metadata={"help": tr("Random seed of the sample.")})


class Corpus:
    """Iterate over the distinct lines of the texts in the files, and count these lines, their bytes and characters.

    If the files are larger than `max_bytes`, only a random sample of the records is used. Only a hash per line stays
    in memory.

    Repeated lines are left out, because the bundled SFT data repeats an answer for each wording of its question.
    If the repetitions counted, clauses of answers would become tokens. No token crosses a line end, so the tokenizer
    can learn from single lines.
    """

    def __init__(self, files: list[Path], max_bytes: float, seed: int):
        # The share of records to use is estimated from the file sizes. A JSON file is a little larger than its text,
        # so the sample is smaller than max_bytes. The text of a compressed Parquet file may be larger than the file,
        # so __iter__ drops the lines after max_bytes.
        self.share = min(1.0, max_bytes / sum(file.stat().st_size for file in files))
        self.files, self.max_bytes, self.seed = files, max_bytes, seed
        self.lines = self.bytes = 0
        self.characters: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        rng = random.Random(self.seed)
        seen: set[int] = set()
        for origin, record in read_records(self.files):
            if rng.random() >= self.share:
                continue
            for line in "\n".join(texts_of(origin, record)).split("\n"):
                if line and hash(line) not in seen and self.bytes < self.max_bytes:
                    seen.add(hash(line))
                    self.lines += 1
                    self.bytes += len(line.encode())
                    self.characters.update(line)
                    yield from (line[i : i + LONGEST_RUN] for i in range(0, len(line), LONGEST_RUN))


def check_arguments(args: TokenizerArguments) -> None:
    """Raise UserError if the output directory must not be replaced, or if `vocab_size` is too small."""
    output = Path(args.output_model)
    check_replaceable(output, args.overwrite, marker="tokenizer.json")
    if (output / "config.json").exists():
        directory = paths.shown(output)
        raise UserError(tr("{directory}/ is a model directory. Choose another --output_model.", directory=directory))
    least = BYTES + len(SPECIAL_TOKENS)
    if args.vocab_size < least:
        raise UserError(
            tr(
                "--vocab_size {size} is too small: {bytes} bytes and {special} special tokens need {least}.",
                size=args.vocab_size,
                bytes=BYTES,
                special=len(SPECIAL_TOKENS),
                least=least,
            )
        )


def peak_megabytes() -> float | None:
    """Return the peak memory of this process in MB, or None on Windows, which lacks the module `resource`."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # `peak`: bytes on macOS, kilobytes on Linux


def print_result(corpus: Corpus, vocabulary: int, seconds: float, args: TokenizerArguments) -> None:
    say(
        tr(
            "Corpus: {lines:,} lines, {megabytes:.2f} MB, {seconds:.1f} s",
            lines=corpus.lines,
            megabytes=corpus.bytes / 1e6,
            seconds=seconds,
        )
    )
    if corpus.share < 1:
        say(
            tr(
                "Only {share:.1%} of the data was sampled, because of --max_megabytes {limit:g}.",
                share=corpus.share,
                limit=args.max_megabytes,
            )
        )
    directory = paths.shown(args.output_model)
    say(tr("Vocabulary: {tokens:,} tokens, written to {directory}/", tokens=vocabulary, directory=directory))
    if vocabulary < args.vocab_size:
        say(
            tr(
                "This corpus supports {tokens:,} tokens, not {wanted:,}, because a pair must occur {times} times to "
                "become one token. More text gives more tokens.",
                tokens=vocabulary,
                wanted=args.vocab_size,
                times=MIN_FREQUENCY,
            )
        )


def main() -> None:
    (args,) = parse(TokenizerArguments, description=DESCRIPTION, docstring=__doc__)
    check_arguments(args)
    files = find_files(args.data or [paths.PRETRAINING_DATA, paths.SFT_DATA])
    corpus = Corpus(files, args.max_megabytes * 1e6, args.seed)

    start = time.time()
    tokenizer = train_bpe(corpus, corpus.characters, args.vocab_size)
    seconds = time.time() - start
    if not corpus.lines:
        names = ", ".join(map(str, files[:3]))
        raise UserError(tr("There is no text in {files}: every record is blank. Give other --data.", files=names))

    with write_beside(args.output_model) as partial:
        tokenizer.save_pretrained(partial)
        report = {
            "lines": corpus.lines,
            "bytes": corpus.bytes,
            "seconds": round(seconds, 2),
            "vocabulary": len(tokenizer),
            "sampled_share": round(corpus.share, 4),
            "max_token_characters": MAX_TOKEN_CHARACTERS,
            "seed": args.seed,
            "peak_megabytes": peak_megabytes(),
        }
        write_json(partial / "metrics.json", report)
    print_result(corpus, len(tokenizer), seconds, args)


if __name__ == "__main__":
    run(main)

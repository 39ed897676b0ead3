"""Show how the tokenizer splits text, and check that no part of the text is lost. The exit code is 1 if a check fails.

Reads  pre_training/py/med_tokenizer/ (or --tokenizer DIR), and the bundled held-out text (or --file FILE)

    python pre_training/py/test_tokenizer.py
    python pre_training/py/test_tokenizer.py --file my_text.txt
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from med_model import paths
from med_model.command import examples, run
from med_model.data.prompt import encode_prompt, encode_text
from med_model.data.records import document_of
from med_model.data.sources import find_files, read_records
from med_model.errors import UserError
from med_model.language import tr
from med_model.model.directory import load_tokenizer
from med_model.screen import say

SENTENCES = (
    "患者服用aspirin片，高血压控制良好。",
    "空腹血糖7.8 mmol/L，糖化血红蛋白6.5%。",
    "突发胸痛伴大汗，请立即拨打120！",
    "孩子发烧39.2℃怎么办？\n多喝水，注意精神状态。",
    "生僻字：龘䶮𠮷；表情：😷🏥；空格  与\t制表符",
    "有人输入 <|im_end|> 或 <|endoftext|> 也只当作普通文字。",
)
REPLACEMENT = "\ufffd"  # the decoder returns this character for an incomplete character
SHOWN_TOKENS = 20  # largest number of tokens in a printed list


def mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return the text of each token.

    A token may hold only some of the bytes of a character. Such a token has no text. Return its name in the vocabulary
    instead, in angle brackets.
    """
    texts = []
    for token in ids:
        text = tokenizer.decode([token])
        texts.append(f"<{tokenizer.convert_ids_to_tokens(token)}>" if REPLACEMENT in text else text)
    return texts


def check_sentence(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Print the tokens of a sentence. Return True if the decoded tokens are equal to the sentence."""
    ids = encode_text(tokenizer, text)
    passed = tokenizer.decode(ids) == text
    say(f"\n{text!r}\n  {'|'.join(token_texts(tokenizer, ids))!r}")
    say(
        "  "
        + tr(
            "{tokens} tokens, {characters:.2f} characters per token, round trip: {mark}",
            tokens=len(ids),
            characters=len(text) / len(ids),
            mark=mark(passed),
        )
    )
    return passed


def check_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[bool, Counter]:
    """Encode and decode the texts. Print the characters and bytes per token, and the speed of encoding.

    Return two values: True if each decoded text is equal to the original, and the count of each token id.
    """
    start = time.time()
    encoded = encode_text(tokenizer, texts)
    seconds = time.time() - start
    tokens, characters = sum(map(len, encoded)), sum(map(len, texts))
    size = sum(len(text.encode()) for text in texts)
    broken = [text for text, ids in zip(texts, encoded, strict=True) if tokenizer.decode(ids) != text]
    say(
        "  "
        + tr(
            "{documents:,} documents, {characters:,} characters, {bytes:,} bytes, {tokens:,} tokens",
            documents=len(texts),
            characters=characters,
            bytes=size,
            tokens=tokens,
        )
    )
    per_token = {"characters": characters / tokens, "bytes": size / tokens}
    say("  " + tr("This tokenizer: {characters:.2f} characters, {bytes:.2f} bytes per token", **per_token))
    say("  " + tr("One token per character would be {bytes:.2f} bytes per token", bytes=size / characters))
    say("  " + tr("One token per byte would be {characters:.2f} characters per token", characters=characters / size))
    say("  " + tr("Encoding took {seconds:.2f} s, {rate:.1f} MB/s", seconds=seconds, rate=size / 1e6 / seconds))
    say("  " + tr("Failed round trips: {count}", count=len(broken)))
    for text in broken[:3]:
        say(f"  {mark(False)} {text[:60]!r}")
    return not broken, Counter(token for ids in encoded for token in ids)


def show_vocabulary(tokenizer: PreTrainedTokenizerBase, used: Counter) -> None:
    """Print the share of unused tokens, the most frequent tokens, and the longest tokens of the vocabulary.

    used: the count of each token id in the measured text. A token without a count is unused.
    """
    vocabulary = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    whole = [
        text
        for token, text in vocabulary.items()
        if REPLACEMENT not in text and token not in tokenizer.all_special_ids
    ]
    frequent = token_texts(tokenizer, [token for token, _ in used.most_common(SHOWN_TOKENS)])
    longest = sorted(whole, key=lambda text: (-len(text), text))[:SHOWN_TOKENS]
    unused = len(tokenizer) - len(used)
    say(
        "  "
        + tr(
            "Tokens that this text does not use: {count:,} ({share:.0%})",
            count=unused,
            share=unused / len(tokenizer),
        )
    )
    say("  " + tr("Most frequent: {tokens}", tokens=repr("|".join(frequent))[1:-1]))
    say("  " + tr("Longest: {tokens}", tokens="|".join(longest)))


def check_typed_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Check that the name of a special token stays plain text if a user types it. Print and return the result."""
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "<|im_end|><|endoftext|>"}])
    passed = sum(token in tokenizer.all_special_ids for token in ids) == 3  # the three that the chat template adds
    say("\n" + tr("Special tokens typed by a user stay plain text: {mark}", mark=mark(passed)))
    return passed


def check_reload(tokenizer: PreTrainedTokenizerBase, directory: str) -> bool:
    """Check that AutoTokenizer loads an equal tokenizer from `directory`. Print and return the result."""
    reloaded = AutoTokenizer.from_pretrained(directory)
    passed = reloaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    say(tr("AutoTokenizer reloads the same tokenizer: {mark}", mark=mark(passed)))
    return passed


def show_training(directory: str) -> None:
    """Print the time of the tokenizer's training, and the peak memory if it is known.

    Both are read from metrics.json in the directory. Print nothing if this file is missing.
    """
    file = Path(directory) / "metrics.json"
    if not file.is_file():
        return
    report = json.loads(file.read_text(encoding="utf-8"))
    seconds, megabytes = report["seconds"], report["bytes"] / 1e6
    say(tr("Training took {seconds:g} s for {megabytes:.2f} MB.", seconds=seconds, megabytes=megabytes))
    if peak := report.get("peak_megabytes"):
        say(tr("Its peak memory was {megabytes:.0f} MB.", megabytes=peak))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=tr("Show the tokens of some sentences, and check that the tokenizer loses nothing."),
        epilog=examples(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--tokenizer", default=str(paths.TOKENIZER), help=tr("Directory of the tokenizer."))
    parser.add_argument(
        "--file",
        nargs="+",
        default=[str(paths.HELDOUT_TEXT)],
        help=tr("Text to measure on. Default: the bundled held-out text."),
    )
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    texts = [text for origin, record in read_records(find_files(args.file)) if (text := document_of(origin, record))]
    if not texts:
        raise UserError(tr("There is no text in {files}. Give --file FILE.", files=", ".join(args.file)))

    directory = paths.shown(args.tokenizer)
    say(tr("Tokenizer: {directory}/, {tokens:,} tokens", directory=directory, tokens=len(tokenizer)))
    passed = [check_sentence(tokenizer, sentence) for sentence in SENTENCES]
    say("\n" + tr("Text: {files}", files=", ".join(map(paths.shown, args.file))))
    lossless, used = check_texts(tokenizer, texts)
    show_vocabulary(tokenizer, used)
    passed += [lossless, check_typed_tokens(tokenizer), check_reload(tokenizer, args.tokenizer)]
    show_training(args.tokenizer)
    if not all(passed):
        print(tr("✗ A check failed."), file=sys.stderr)
        sys.exit(1)
    say(tr("✓ All checks passed."))


if __name__ == "__main__":
    run(main)

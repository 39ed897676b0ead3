"""Show what the tokenizer does, and check that it loses nothing: exit code 1 where a round trip fails.

Reads  pre_training/py/med_tokenizer/ (or --tokenizer DIR), and the text of --file FILE

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
from med_model.command import run
from med_model.data.prompt import encode_prompt, encode_text
from med_model.data.records import document_of
from med_model.data.sources import find_files, read_records
from med_model.errors import UserError
from med_model.model.directory import load_tokenizer

SENTENCES = (
    "患者服用aspirin片，高血压控制良好。",
    "空腹血糖7.8 mmol/L，糖化血红蛋白6.5%。",
    "突发胸痛伴大汗，请立即拨打120！",
    "孩子发烧39.2℃怎么办？\n多喝水，注意精神状态。",
    "生僻字：龘䶮𠮷；表情：😷🏥；空格  与\t制表符",
    "有人输入 <|im_end|> 或 <|endoftext|> 也只当作普通文字。",
)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of each token; a token that is a part of a character is shown by its bytes."""
    shown = []
    for token in ids:
        text = tokenizer.decode([token])
        shown.append(f"<{tokenizer.convert_ids_to_tokens(token)}>" if "\ufffd" in text else text)
    return shown


def show_sentence(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    ids = encode_text(tokenizer, text)
    same = tokenizer.decode(ids) == text
    print(f"\n{text!r}\n  {'|'.join(pieces(tokenizer, ids))!r}")
    mark = "✓" if same else "✗"
    print(f"  {len(ids)} 词元/tokens, {len(text) / len(ids):.2f} 字/characters a token, 还原/round trip: {mark}")
    return same


def measure(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[bool, Counter]:
    start = time.time()
    encoded = encode_text(tokenizer, texts)
    seconds = time.time() - start
    tokens, characters = sum(map(len, encoded)), sum(map(len, texts))
    size = sum(len(text.encode()) for text in texts)
    broken = [text for text, ids in zip(texts, encoded, strict=True) if tokenizer.decode(ids) != text]
    print(f"  {len(texts):,} 篇/documents, {characters:,} 字/characters, {size:,} 字节/bytes, {tokens:,} 词元/tokens")
    print(f"  {'':30}{'字/词元 char/token':>20}{'字节/词元 byte/token':>22}")
    rows = [
        ("本分词器/this tokenizer", characters / tokens, size / tokens),
        ("一字一词元/one character a token", 1.0, size / characters),
    ]
    for name, by_character, by_byte in [*rows, ("原始字节/raw bytes", characters / size, 1.0)]:
        print(f"  {name:30}{by_character:>20.2f}{by_byte:>22.2f}")
    print(
        f"  编码/encoding: {seconds:.2f} s, {size / 1e6 / seconds:.1f} MB/s; "
        f"还原失败/failed round trips: {len(broken)}"
    )
    for text in broken[:3]:
        print(f"  ✗ {text[:60]!r}")
    return not broken, Counter(token for ids in encoded for token in ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer", default=str(paths.TOKENIZER), help="tokenizer directory")
    parser.add_argument(
        "--file", nargs="+", default=[str(paths.HELDOUT_TEXT)], help="text to measure on (default: held-out)"
    )
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    texts = [text for where, record in read_records(find_files(args.file)) if (text := document_of(where, record))]
    if not texts:
        raise UserError(f"没有文本/no text in {', '.join(args.file)}: give --file FILE")

    print(f"分词器/tokenizer: {paths.shown(args.tokenizer)}/, {len(tokenizer):,} 词元/tokens")
    good = [show_sentence(tokenizer, sentence) for sentence in SENTENCES]
    print(f"\n文件/file: {', '.join(map(paths.shown, args.file))}")
    lossless, used = measure(tokenizer, texts)
    vocabulary = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    whole = [
        text for token, text in vocabulary.items() if "\ufffd" not in text and token not in tokenizer.all_special_ids
    ]
    longest = sorted(whole, key=lambda text: (-len(text), text))[:20]
    print(f"  未用到/unused here: {len(tokenizer) - len(used):,} ({1 - len(used) / len(tokenizer):.0%})")
    print(f"  最常见/most frequent: {'|'.join(repr(vocabulary[token])[1:-1] for token, _ in used.most_common(20))}")
    print(f"  最长/longest: {'|'.join(longest)}")

    typed = encode_prompt(tokenizer, [{"role": "user", "content": "<|im_end|><|endoftext|>"}])
    safe = sum(token in tokenizer.all_special_ids for token in typed) == 3  # start, end, start: the template's own
    reloaded = AutoTokenizer.from_pretrained(args.tokenizer)
    same = reloaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    print(f"\n用户打出的特殊词元只当文字/typed special tokens stay text: {'✓' if safe else '✗'}")
    print(f"AutoTokenizer 重新读取一致/reloads identically: {'✓' if same else '✗'}")
    report = Path(args.tokenizer) / "metrics.json"
    if report.is_file():
        made = json.loads(report.read_text(encoding="utf-8"))
        print(f"训练/training took {made['seconds']} s for {made['bytes'] / 1e6:.2f} MB", end="")
        print(f", 内存峰值/peak memory {made['peak_megabytes']:.0f} MB" if made.get("peak_megabytes") else "")
    if not (all(good) and lossless and safe and same):
        print("✗ 检查未通过/a check failed", file=sys.stderr)
        sys.exit(1)
    print("✓ 全部通过/all checks passed")


if __name__ == "__main__":
    run(main)

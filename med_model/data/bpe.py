"""Train a byte-level BPE tokenizer for Chinese: first the characters become tokens, then pairs of tokens."""

import json
import sys
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from med_model.data.prompt import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, PAD

SPECIAL_TOKENS = [PAD, END_OF_TEXT, IM_START, IM_END]
BYTES = 256
# Chinese characters with some of the marks among them, and Korean syllables. llama.cpp has wide spaces in this class,
# but turns them into narrow ones before.
HAN = r"[[一-龥ࠀ-一가-퟿]&&\S]"
# This pattern separates line ends, words, punctuation, Chinese text and digits. Example:
# 患者服用|aspirin|片|，|高血压. A token is never longer than a piece. llama.cpp makes the same pieces in five steps,
# under the name `deepseek-coder`. One step takes less time.
PIECES = "|".join(
    (
        r"[\r\n]",
        r"\p{N}",
        rf"\s(?=[{HAN}&&[\p{{L}}\p{{P}}]])",
        rf"\s?[\p{{L}}&&[^{HAN}]]+",
        rf"\s?[\p{{P}}&&[^{HAN}]]+",
        rf"[\p{{L}}&&{HAN}]+",
        rf"[\p{{P}}&&{HAN}]+",
        rf"[{HAN}&&[^\p{{L}}\p{{P}}\p{{N}}]]+",
    )
)
# Without a limit, a clause that many texts repeat becomes one token. With a limit of 4 characters instead of 8, a
# held-out text has a sixth more tokens.
MAX_TOKEN_CHARACTERS = 8
# A character that occurs twice is a token. As three bytes it would be three tokens that the model hardly ever sees.
MIN_CHARACTER_FREQUENCY = 2
CHARACTER_SHARE = 0.5  # largest share of --vocab_size for the tokens of single characters
# A merge joins two tokens into a new token. A pair that occurs fewer than 48 times is not merged, because the model
# would see the new token too rarely to learn it.
MIN_FREQUENCY = 48


def pre_tokenizer(*after: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), *after])


def merges_of_characters(lines: Iterable[str], vocab_size: int) -> list[list[str]]:
    """Learn from the lines which pairs of tokens to merge. The tokens are characters here, not bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        max_token_length=MAX_TOKEN_CHARACTERS,
        show_progress=sys.stdout.isatty(),  # in a file or a pipe, the progress bars would be blank lines
    )
    tokenizer.train_from_iterator(lines, trainer)
    return json.loads(tokenizer.to_str())["model"]["merges"]


def byte_level_bpe(characters: list[str], merges: list[list[str]], vocab_size: int) -> Tokenizer:
    """Return a tokenizer with these characters and merges as tokens, at most `vocab_size` tokens in all.

    It encodes every text without loss, because every byte is a token, too. First the bytes of a character are merged,
    then characters. `characters` begins with the most frequent one.
    """
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(bytes_of.alphabet())])}
    learned: dict[tuple[str, str], None] = {}  # pairs in their order; two pairs may give the same token

    def merge(left: str, right: str, limit: int) -> bool:
        token = left + right
        if left not in vocabulary or right not in vocabulary or (token not in vocabulary and len(vocabulary) >= limit):
            return False
        vocabulary.setdefault(token, len(vocabulary))
        learned.setdefault((left, right))
        return True

    def spelled(text: str) -> str:  # as the byte-level tokenizer writes a text: one printable character per byte
        return "".join(piece for piece, _ in bytes_of.pre_tokenize_str(text))

    def merge_characters(limit: int) -> None:
        for character in characters:
            token, *rest = spelled(character)
            for byte in rest:
                if not merge(token, byte, limit):
                    return
                token += byte

    merge_characters(len(vocabulary) + int((vocab_size - len(vocabulary)) * CHARACTER_SHARE))
    for left, right in merges:
        merge(spelled(left), spelled(right), vocab_size)
    merge_characters(vocab_size)  # the rare ones, where merges have left room

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(learned)))
    tokenizer.pre_tokenizer = pre_tokenizer(bytes_of)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_bpe(lines: Iterable[str], counts: Counter[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn from the lines which tokens to merge. Return the tokenizer with special tokens and chat template.

    counts: how often each character occurs in the lines. It may be counted while the lines are read, because it is
    used after that.
    """
    merges = merges_of_characters(lines, vocab_size)
    characters = [character for character, count in counts.most_common() if count >= MIN_CHARACTER_FREQUENCY]
    tokenizer = byte_level_bpe(characters, merges, vocab_size)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[IM_START, IM_END],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    trained.chat_template = CHAT_TEMPLATE
    return trained

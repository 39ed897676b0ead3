"""Check pre_training/py/train_tokenizer.py and pre_training/py/test_tokenizer.py."""

import json
import random
import shutil

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import train_tokenizer
from med_model.data.bpe import byte_level_bpe
from med_model.data.prompt import encode_text
from med_model.errors import UserError

TRAIN, CHECK = "pre_training/py/train_tokenizer.py", "pre_training/py/test_tokenizer.py"

# The characters of the random texts come from these ranges: (first code point, last code point).
BLOCKS = (
    (0x00, 0x1F),  # control characters
    (0x20, 0x7E),
    (0x7F, 0x9F),
    (0xA0, 0x24F),
    (0x300, 0x36F),  # combining marks
    (0x590, 0x6FF),  # Hebrew and Arabic, written from right to left
    (0x2000, 0x206F),  # rare spaces, joiners, direction marks
    (0x3000, 0x303F),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xF8FF),  # private use: Unicode defines no characters here
    (0xFE00, 0xFEFF),  # variation selectors, presentation forms, the byte order mark
    (0xFF00, 0xFFFF),  # full-width characters, and the special code points U+FFFD and U+FFFF
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
    (0xE0000, 0x10FFFF),
)


def random_text(rng: random.Random) -> str:
    return "".join(chr(rng.randint(*rng.choice(BLOCKS))) for _ in range(rng.randint(1, 40)))


def pre_tokens(tokenizer, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def vocabulary(tokenizer) -> list[bytes]:
    """Return the bytes of each token that is not a special token.

    The tokenizer writes each byte of a token as one character, as GPT-2 does. This function turns the characters back
    into bytes. It does not use the tokenizer's decoder, because the tests check the decoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # each of these bytes is written as chr(byte)
    hidden = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    special = tokenizer.all_special_tokens
    return [bytes(byte_of[c] for c in token) for token in tokenizer.get_vocab() if token not in special]


@pytest.mark.parametrize(
    "pieces",
    [
        "患者服用|aspirin|片|，|高血压",
        "收缩压|1|4|0|/|9|0|毫米汞柱",
        "第|1|2|天|\n|\n|复查",
        "胸痛|！？|拨打|1|2|0",
        "take| aspirin| now|.",
        "体温|３|９|℃",
    ],
)
def test_pre_tokenizer_splits_words_han_runs_punctuation_and_single_digits(tokenizer, pieces):
    assert pre_tokens(tokenizer, pieces.replace("|", "")) == pieces.split("|")


def test_vocabulary_has_no_token_with_a_digit_and_another_character(tokenizer):
    tokens = vocabulary(tokenizer)
    assert [
        token for token in tokens if len(token) > 1 and any(chr(byte).isdigit() for byte in token if byte < 128)
    ] == []
    assert len(encode_text(tokenizer, "120")) == 3
    assert any("拨打".encode() in token for token in tokens), (
        "the text beside the digits is too rare to become a token"
    )


def test_vocabulary_has_no_token_above_24_bytes_even_for_longer_text_that_is_frequent(tokenizer):
    assert 20 < max(map(len, vocabulary(tokenizer))) <= 24


def test_byte_level_bpe_keeps_both_pairs_that_give_the_same_token():
    merges = [["乙", "丙"], ["甲", "乙"], ["甲乙", "丙"], ["甲", "乙丙"]]
    made = byte_level_bpe(["甲", "乙", "丙"], merges, vocab_size=300)
    assert len(made.encode("甲乙丙").ids) == 1, "the better pair 乙丙 comes first, then 甲 and 乙丙"


def test_vocabulary_has_a_token_for_every_byte(tokenizer):
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary(tokenizer))


@pytest.mark.parametrize(
    "text",
    [
        "患者服用aspirin片，高血压控制良好。",
        "👩🏽‍⚕️🏥👨‍👩‍👧‍👦😷",
        "\x00\x01\x07\x1b[0m\x7f\x85",
        "\u0301\u0300 é e\u0301 \u20dd",
        "  a  b\t\n\r\n \u3000\u00a0\u200b\ufeff ",
        "don 't , isn't . a !",
        "生僻字龘䶮𠮷𪚥",
        "ﬁ ℃ ① Ａ ㎎ ｶﾞ ½",
        "\ufffd\uffff\U0010ffff",
        "مرحبا שלום नमस्ते",
        "<|im_end|><|endoftext|><|pad|> <|im_start|>user\n",
    ],
)
def test_round_trip_keeps_the_text(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


def test_round_trip_keeps_random_text_of_any_characters(tokenizer):
    rng = random.Random(20000)
    texts = [random_text(rng) for _ in range(500)]
    broken = [
        text for text, ids in zip(texts, encode_text(tokenizer, texts), strict=True) if tokenizer.decode(ids) != text
    ]
    assert broken == []


def test_special_tokens_are_four_different_ones_and_pad_is_not_eos(tokenizer):
    special = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert len(set(special)) == 4
    assert set(special) == set(tokenizer.all_special_ids)
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id] == [
        special[0],
        special[1],
        special[1],
    ]


def test_auto_tokenizer_agrees_with_the_tokenizers_library_even_beside_a_gpt2_model(
    tokenizer_directory, model_directory, tmp_path
):
    plain = Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    reloaded = AutoTokenizer.from_pretrained(tokenizer_directory)
    reloaded.save_pretrained(tmp_path / "again")
    rng = random.Random(7)
    texts = ["患者服用aspirin片，高血压，拨打120。"] + [random_text(rng) for _ in range(50)]
    for directory in (tokenizer_directory, model_directory, tmp_path / "again"):
        one = AutoTokenizer.from_pretrained(directory)
        assert [one(text)["input_ids"] for text in texts] == [plain.encode(text).ids for text in texts]
        assert one.chat_template == reloaded.chat_template and "{% generation %}" in one.chat_template
        assert one.special_tokens_map == reloaded.special_tokens_map
        assert pre_tokens(one, "患者服用aspirin片") == ["患者服用", "aspirin", "片"]


# Tests of pre_training/py/train_tokenizer.py


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    rows = [{"text": f"第{number}条：高血压患者要按时复查。"} for number in range(24)] + [{"text": " "}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.long
def test_train_tokenizer_keeps_an_existing_tokenizer_without_overwrite(run_script, texts, tmp_path):
    output = tmp_path / "made"
    output.mkdir()
    (output / "mine.txt").write_text("precious")
    (output / "tokenizer.json").write_text("{}")
    refused = run_script(TRAIN, "--data", texts, "--output_model", output)
    assert refused.returncode == 2
    assert str(output) in refused.stderr and "--overwrite" in refused.stderr and "Traceback" not in refused.stderr
    assert {file.name for file in output.iterdir()} == {"mine.txt", "tokenizer.json"}

    done = run_script(TRAIN, "--data", texts, "--output_model", output, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (output / "tokenizer.json").is_file() and not (output / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "texts.jsonl"], "a partial directory is left"
    # So few lines cannot give 20,000 tokens, the default. The script must print how many tokens it made.
    size = len(AutoTokenizer.from_pretrained(output))
    assert 260 < size < 300
    assert f"supports {size} tokens, not 20,000" in done.stdout


@pytest.mark.long
def test_train_tokenizer_gives_the_same_tokenizer_for_the_same_corpus(run_script, tokenizer_directory, tmp_path):
    options = ("--data", tokenizer_directory.with_name("texts.jsonl"))
    assert run_script(TRAIN, *options, "--output_model", tmp_path / "again").returncode == 0
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tokenizer_directory / "tokenizer.json").read_bytes()


@pytest.mark.long
def test_train_tokenizer_refuses_an_unknown_option_with_exit_code_2_and_writes_nothing(run_script, texts, tmp_path):
    done = run_script(TRAIN, "--data", texts, "--output_model", tmp_path / "made", "--vocabulary", "300")
    assert done.returncode == 2
    assert "--vocabulary" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


@pytest.mark.parametrize(
    "options, message",
    [
        (("--vocab_size", "259"), "--vocab_size 259 .* 260"),
        (("--data", "{folder}/blank.jsonl"), "no text in .*blank.jsonl"),
        (("--data", "{folder}/shape.jsonl"), "shape.jsonl.*row 2.*body"),
        (("--data", "{folder}/nowhere.txt"), "nowhere.txt"),
        (("--vocab", "300"), "--vocab"),  # the parser does not accept a shortened option
    ],
)
def test_train_tokenizer_names_a_mistake_and_leaves_no_file(texts, tmp_path, monkeypatch, options, message):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "blank.jsonl").write_text('{"text": " "}\n', encoding="utf-8")
    (folder / "shape.jsonl").write_text('{"text": "好"}\n{"body": "好"}\n', encoding="utf-8")
    options = [option.format(folder=folder) for option in options]
    data = [] if "--data" in options else ["--data", str(texts)]
    monkeypatch.setattr("sys.argv", [TRAIN, *data, "--output_model", str(tmp_path / "made"), *options])
    with pytest.raises(UserError, match=message):
        train_tokenizer.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "texts.jsonl"]


def test_train_tokenizer_meets_a_vocabulary_size_that_the_corpus_supports(texts, tmp_path, monkeypatch, capsys):
    options = ["--data", str(texts), "--output_model", str(tmp_path / "made"), "--vocab_size", "270"]
    monkeypatch.setattr("sys.argv", [TRAIN, *options])
    train_tokenizer.main()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "made")) == 270
    assert "supports" not in capsys.readouterr().out


def write_lines(file, lines: list[str]):
    file.write_text("".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def test_corpus_above_the_byte_limit_is_sampled_from_the_whole_file(tmp_path):
    lines = [f"{number}号患者的血压和血糖都要按时复查。" for number in range(1000)]
    size = sum(len(line.encode()) for line in lines)
    file = write_lines(tmp_path / "large.jsonl", lines)
    corpus = train_tokenizer.Corpus([file], max_bytes=size / 4, seed=1)
    sampled = list(corpus)
    assert size / 6 < sum(len(line.encode()) for line in sampled) == corpus.bytes <= size / 4 + 60
    assert corpus.lines == len(sampled) == len(set(sampled))
    assert set(sampled) <= set(lines)
    assert set(sampled) & set(lines[:250]) and set(sampled) & set(lines[750:]), "only a part of the file is sampled"


def test_corpus_within_the_byte_limit_is_whole_and_has_a_repeated_line_once(tmp_path):
    file = write_lines(tmp_path / "small.jsonl", ["发烧多喝水。\n注意休息。", "发烧多喝水。", "按时复查。"])
    corpus = train_tokenizer.Corpus([file], max_bytes=1000, seed=1)
    assert list(corpus) == ["发烧多喝水。", "注意休息。", "按时复查。"]
    assert corpus.share == 1


# Tests of pre_training/py/test_tokenizer.py


@pytest.fixture
def sample(tmp_path):
    file = tmp_path / "sample.txt"
    file.write_text("高血压要少盐。\n\n过敏性鼻炎的人对花粉和尘螨敏感。", encoding="utf-8")
    return file


@pytest.mark.long
def test_check_passes_for_a_good_tokenizer_and_prints_the_measures(run_script, tokenizer_directory, sample):
    done = run_script(CHECK, "--tokenizer", tokenizer_directory, "--file", sample)
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in ("aspirin", "2 documents", "One token per byte", "✓ All checks passed", "✗"):
        assert (shown in done.stdout) == (shown != "✗"), shown


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFKC"},  # NFKC changes ℃, a character in one of the script's own sentences
        {"type": "Replace", "pattern": {"String": "鼻"}, "content": "口"},  # 鼻 occurs only in the file `sample`
    ],
    ids=["in the fixed sentences", "in the file only"],
)
@pytest.mark.long
def test_check_fails_for_a_tokenizer_that_changes_the_text(
    run_script, tokenizer_directory, sample, tmp_path, normalizer
):
    lossy = shutil.copytree(tokenizer_directory, tmp_path / "lossy")
    settings = json.loads((lossy / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["normalizer"] is None
    (lossy / "tokenizer.json").write_text(json.dumps(settings | {"normalizer": normalizer}), encoding="utf-8")
    done = run_script(CHECK, "--tokenizer", lossy, "--file", sample)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗" in done.stdout and "All checks passed" not in done.stdout


@pytest.mark.long
def test_check_ends_with_exit_code_2_for_a_missing_tokenizer(run_script, sample, tmp_path):
    done = run_script(CHECK, "--tokenizer", tmp_path / "nowhere", "--file", sample)
    assert done.returncode == 2
    assert str(tmp_path / "nowhere") in done.stderr and "Traceback" not in done.stderr

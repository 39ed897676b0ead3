"""Check that each text for the screen is passed to `tr`, the function that translates, and has a Chinese translation.

Also check that a script prints only one language.
"""

import ast
import os
import re
import subprocess
import sys

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from conftest import ROOT

CATALOGUE = ROOT / "med_model/locale/zh_CN/LC_MESSAGES"
FOLDERS = ("med_model", "pre_training/py", "sft/py", "dpo/py", "benchmarks", "corpus")
HANZI = re.compile("[\u2e80-\u9fff\uff00-\uffef]")
PLACEHOLDER = re.compile(r"\{[^{}]*\}|%\(\w+\)[srd]|%[srd]")
PHRASE = re.compile(r"[A-Za-z]{3,} [A-Za-z]{2,}")
ENGLISH_SENTENCE = re.compile(r"(?<![\w./-])(?:[A-Za-z]{2,} ){3}[a-z]{2,}(?![\w./-])")
BOTH_LANGUAGES = re.compile(r"[\u4e00-\u9fff] ?/ ?[A-Za-z]|[A-Za-z] ?/ ?[\u4e00-\u9fff]")
SCREEN_CALLS = {"print", "say", "UserError", "input", "write", "add_argument", "warn", "set_description"}


def extracted() -> set[str]:
    """Return the messages that Babel extracts from the source files: the texts that are passed to `tr`."""
    found = set()
    for folder in FOLDERS:
        found |= {message for _, _, message, _, _ in extract_from_dir(ROOT / folder, keywords={"tr": None})}
    source = ROOT / "compare_different_model.py"
    with source.open("rb") as lines:
        from babel.messages.extract import extract

        found |= {message for _, message, _, _ in extract("python", lines, keywords={"tr": None})}
    return found


def called() -> list[str | None]:
    """Return one item per call of `tr` in the source files: the message, or None if it is not a plain string."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")] + [
        ROOT / "compare_different_model.py"
    ]
    messages = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tr":
                messages.append(node.args[0].value if isinstance(node.args[0], ast.Constant) else None)
    return messages


def test_every_call_of_tr_is_seen_by_the_extraction():
    assert set(called()) == extracted(), "tr takes a plain string, and stands in no f-string"


@pytest.fixture(scope="module")
def catalogue() -> dict[str, str]:
    with (CATALOGUE / "med_model.po").open("rb") as lines:
        return {message.id: message.string for message in read_po(lines, locale="zh_CN") if message.id}


def test_the_catalogue_has_the_messages_of_the_sources_and_no_others(catalogue):
    found = extracted()
    assert len(found) > 100, "the search finds nothing"
    assert (found - catalogue.keys(), catalogue.keys() - found) == (set(), set()), "run make messages"


def test_the_compiled_catalogue_is_that_of_the_text_file(catalogue):
    with (CATALOGUE / "med_model.mo").open("rb") as compiled:
        found = {message.id: message.string for message in read_mo(compiled) if message.id}
    assert found == catalogue, "run make messages"


def faults(message: str, translation: str) -> list[str]:
    """Return the faults of a message and its Chinese translation, for example a missing translation."""
    found = []
    if not translation:
        found.append("no translation")
    if sorted(PLACEHOLDER.findall(message)) != sorted(PLACEHOLDER.findall(translation)):
        found.append("other placeholders")
    if BOTH_LANGUAGES.search(PLACEHOLDER.sub("", message)) or BOTH_LANGUAGES.search(translation):
        found.append("both languages in one message")
    if ENGLISH_SENTENCE.search(PLACEHOLDER.sub("", translation)):
        found.append("English in the Chinese")
    return found


def test_each_message_has_its_chinese_with_the_same_placeholders_and_no_mixture(catalogue):
    assert {message: found for message, text in catalogue.items() if (found := faults(message, text))} == {}


@pytest.mark.parametrize(
    "message, translation",
    [
        ("{rows:,} rows", ""),
        ("{rows:,} rows", "{rows} 行"),
        ("{rows:,} rows", "{count:,} 行"),
        ("unknown option: %s", "未知选项"),
        ("训练/training", "训练"),
        ("The model is published.", "模型 the model is published here。"),
    ],
)
def test_faults_finds_each_fault_of_a_message(message, translation):
    assert faults(message, translation) != []


def untranslated(source: str) -> list[str]:
    """Return the texts that the Python code `source` shows on the screen without `tr`, each with its line number.

    A text counts only if it has a Chinese character, or two English words in a row.
    """
    found = []

    def texts(node: ast.AST) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tr":
            return
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if PHRASE.search(text) or HANZI.search(text):
            found.append(f"line {node.lineno}: {text[:60]}")
        for child in ast.iter_child_nodes(node):
            texts(child)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in SCREEN_CALLS:
                texts(node)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    texts(value)
    return found


def test_texts_for_the_screen_go_through_tr():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")] + [
        ROOT / "compare_different_model.py"
    ]
    found = {str(file.relative_to(ROOT)): untranslated(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        'print("nothing to do")',
        'raise UserError(f"no data in {source}")',
        'say("训练 " + tr("x"))',
        'field(metadata={"help": "the longest answer"})',
    ],
)
def test_untranslated_finds_texts_that_do_not_go_through_tr(source):
    assert untranslated(source) != []


def spoken(language: str, *arguments: str) -> tuple[int, str]:
    """Run a script in one language. Return the exit code and the whole output."""
    environment = os.environ | {"MED_MODEL_LANG": language, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
def test_an_error_is_in_the_language_of_the_screen(tmp_path):
    command = ("sft/py/sft_train.py", "--data", str(tmp_path / "none.jsonl"), "--output_model", str(tmp_path / "m"))
    command += ("--output_dir", str(tmp_path / "c"))  # old checkpoints in the default folder would cause another error
    (code, english), (code_zh, chinese) = spoken("en", *command), spoken("zh", *command)
    assert code == code_zh == 2
    assert not HANZI.search(english) and "none.jsonl" in english
    assert HANZI.search(chinese) and not ENGLISH_SENTENCE.search(chinese) and "none.jsonl" in chinese


@pytest.mark.long
def test_an_unknown_language_is_refused_by_name():
    code, printed = spoken("fr", "compare_different_model.py", "--measures", "False")
    assert code == 2 and "MED_MODEL_LANG" in printed and "fr" in printed


@pytest.mark.long
def test_help_explains_our_options_in_the_language_of_the_screen():
    _, english = spoken("en", "compare_different_model.py", "--help")
    _, chinese = spoken("zh", "compare_different_model.py", "--help")
    options = re.findall(r"^  (--\w+)", english, re.MULTILINE)
    assert re.findall(r"^  (--\w+)", chinese, re.MULTILINE) == options and len(options) > 8
    ours = english.split("options", 1)[1].split("Examples:")[0]
    assert not HANZI.search(ours) and HANZI.search(chinese)

"""Check the documents: the parsers accept the commands, the commands of the READMEs run, and the links are valid."""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_python

READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = [*READMES, "CONTRIBUTING.md"] + sorted(
    str(file.relative_to(ROOT)) for folder in ("docs", "docs/en", "corpus") for file in (ROOT / folder).glob("*.md")
)
SCRIPTS = {
    file.name: str(file.relative_to(ROOT))
    for pattern in ("*/py/*.py", "compare_different_model.py", "corpus/build.py", "benchmarks/run.py")
    for file in ROOT.glob(pattern)
}
NOT_RUN = "# not run by the tests"
MOST_BYTES = 9_000  # largest size of a README, in bytes


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def block_commands(text: str) -> list[str]:
    """Return the lines of all code blocks marked as bash, sh or shell, without blank lines and comments."""
    lines = []
    for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += [line.strip() for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines


def span_commands(text: str) -> list[str]:
    """Return the commands between backticks: `python SCRIPT ...`, `SCRIPT.py --option ...`, `make TARGET`.

    In a row of a table, options without a script belong to the script that the row names before them.
    """
    found = []
    for line in re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
        script = None
        for span in re.findall(r"`([^`]+)`", line):
            words = span.split()
            if words[0] == "make" and len(words) > 1 or words[0] == "python" and len(words) > 1:
                found.append(span)
            elif Path(words[0]).name in SCRIPTS:
                script = SCRIPTS[Path(words[0]).name]
                if len(words) > 1:
                    found.append(f"python {script} {' '.join(words[1:])}")
            elif script and span.startswith("--") and len(words) > 1 and line.startswith("|"):
                found.append(f"python {script} {span}")
    return found


def commands_of(document: str) -> list[str]:
    return block_commands(text_of(document)) + span_commands(text_of(document))


class Parsed(Exception):
    """This exception ends a script after the parser has accepted the options."""


def parse_command(command: str, monkeypatch) -> None:
    """Give the options of `python SCRIPT ...` or `python -m MODULE ...` to the script's own parser.

    Raise the error of the parser (UserError or SystemExit) if the parser refuses the options.
    """
    words = [word for word in shlex.split(command, comments=True) if not re.match(r"\w+=", word)]
    words = [word.replace("$H", "hf://datasets/shibing624/medical") for word in words]
    if words[1] == "-m":
        name, options = words[2], words[3:]
    else:
        name, options = SCRIPTS[Path(words[1]).name].removesuffix(".py").replace("/", "."), words[2:]
    monkeypatch.setattr(sys, "argv", [words[1], *options])
    # The modules of benchmarks/ and corpus/ import each other without a folder name, so both must be in sys.path.
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "corpus")
    module = importlib.import_module(name)
    real_parse_args = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments, **options):
        real_parse_args(self, *arguments, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    if real_parse := getattr(module, "parse", None):

        def parse(*arguments, **options):
            real_parse(*arguments, **options)
            raise Parsed

        monkeypatch.setattr(module, "parse", parse)
    if "--help" in options:
        with pytest.raises(SystemExit, match="0"):
            module.main()
        return
    with pytest.raises(Parsed):
        if "run_chat" in vars(module):
            module.run_chat("Talk.", module.__doc__, ROOT)
        else:
            module.main()


def pythons(document: str) -> list[str]:
    """Return the commands of a document that start one of our scripts or modules.

    Each command begins with `python`, without the path of the interpreter.
    """
    found = []
    for command in commands_of(document):
        command = re.sub(r"^\S*python(3?)(?= )", "python", command)
        words = command.split()
        if words[0] != "python":
            continue
        ours = words[1] == "-m" and words[2].startswith("med_model.")
        if ours or Path(words[1]).name in SCRIPTS:
            found.append(command)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_a_document_pass_the_real_parser(document):
    for command in pythons(document):
        with pytest.MonkeyPatch.context() as patch:
            try:
                parse_command(command, patch)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{document}: {command}\n{error!r}")


def test_parse_command_refuses_an_unknown_option():
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="no_such"):
        parse_command("python sft/py/sft_train.py --no_such 1", patch)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_of_a_document_exist(document):
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    named = {command.split()[1] for command in commands_of(document) if command.startswith("make ")}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_point_to_existing_files(document):
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not ((ROOT / document).parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_no_folder_outside_the_project(document):
    assert "../shared" not in text_of(document) and "/work/" not in text_of(document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_records_that_a_document_quotes_exist(document):
    for pattern in re.findall(r"results/[\w*.-]+\.json", text_of(document)):
        assert list(ROOT.glob(pattern)) or "DATE" in pattern, pattern


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_is_short(readme):
    assert (ROOT / readme).stat().st_size <= MOST_BYTES


def test_both_readmes_have_the_same_commands():
    assert [commands_of(readme) for readme in READMES[:1]] == [commands_of(readme) for readme in READMES[1:]]


def test_documents_exist_in_both_languages():
    chinese = {file.name for file in (ROOT / "docs").glob("*.md")}
    english = {file.name for file in (ROOT / "docs/en").glob("*.md")}
    assert chinese == english - {"recipes.md"} and len(chinese) >= 9


TINY = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_records", "30", "--overwrite"]
TINY += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
TINY_OPTIONS = {
    "train_tokenizer.py": ["--overwrite"],
    "run_pretraining.py": TINY,
    "sft_train.py": [*TINY, "--eval_data", "sft/dataset/heldout/dental.jsonl"],
    "dpo_train.py": [*TINY, "--eval_data", "dpo/dataset/heldout/dental.jsonl"],
    "compare_different_model.py": ["--max_new_tokens", "4", "--data", "sft/dataset/heldout/dental.jsonl"],
    "base_model_chat.py": ["--max_new_tokens", "4", "--prompt", "高血压"],
    "sft_model_chat.py": ["--max_new_tokens", "4", "--prompt", "高血压"],
    "dpo_model_chat.py": ["--max_new_tokens", "4", "--prompt", "高血压"],
    "evaluate.py": ["--max_new_tokens", "4"],
}


@pytest.mark.long
def test_commands_of_the_readmes_run_in_a_copy_of_the_checkout(tmp_path):
    """Run the commands of `make demo`, then those of README.md. Added options make the trainings and answers short.

    Leave out commands with a placeholder (TEXT, NAME.yaml) and commands with the comment NOT_RUN.
    """
    copy = tmp_path / "Med_model"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    demo = subprocess.run(["make", "-n", "demo", "VENV=."], cwd=copy, capture_output=True, text=True).stdout
    demo = [re.sub(r"^\S*python ", "python ", line.strip()) for line in demo.splitlines() if "--config" in line]
    assert len(demo) == 5, "the five scripts of the demo"
    commands = demo + [command for command in pythons("README.md") if NOT_RUN not in command]
    for command in dict.fromkeys(commands):
        words = shlex.split(command)[1:]
        if "TEXT" in words or "NAME.yaml" in command:
            continue
        extra = TINY_OPTIONS.get(Path(words[0]).name, [])
        if "--prompt" in words:
            extra = extra[:2]
        if "--dry_run" in words:
            extra = extra[2:]  # a dry run needs no --max_steps: it stops after four steps
        done = run_python([*words, *extra], None, 300, cwd=copy, PYTHONPATH=str(copy))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

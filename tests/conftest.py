"""Define the shared fixtures: a tiny tokenizer, a tiny model, functions that run scripts, a run of all stages.

Torch takes seconds to import. The main process of pytest-xdist reads this file too, but runs no tests. So torch and
the scripts are imported inside the fixtures, not at the top of this file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["MED_MODEL_LANG"] = "en"  # the tests expect the English messages
os.environ["OMP_NUM_THREADS"] = "1"  # one thread per test process; torch reads this setting at its import
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may use the network; huggingface_hub reads this setting at its import

import pytest

from med_model import paths

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER, PRETRAINING = "pre_training/py/train_tokenizer.py", "pre_training/py/run_pretraining.py"
SFT, DPO, COMPARE = "sft/py/sft_train.py", "dpo/py/dpo_train.py", "compare_different_model.py"
ROWS = 60  # number of SFT rows and of DPO pairs in the small run of all stages

DISEASES = (
    "高血压",
    "糖尿病",
    "冠心病",
    "支气管哮喘",
    "慢性胃炎",
    "偏头痛",
    "湿疹",
    "肺炎",
    "贫血",
    "甲状腺功能亢进症",
    "痛风",
    "癫痫",
    "荨麻疹",
    "肾结石",
    "过敏性鼻炎",
    "骨质疏松症",
)
ADVICE = (
    "患者服用aspirin片前请先问医生，不要自己加量",
    "患者如果突然胸痛、出冷汗，请立即拨打120",
    "要少盐少油，多吃蔬菜，每天快走30分钟",
    "发作时血压 <140/90 也不能大意，数值 >180 要看急诊",
    "平时怎么办？按时复查，把结果记下来；有变化就去医院",
    "请在专业医生指导下合理使用药物治疗本病",  # this text is frequent, but longer (57 bytes) than a token may be (24)
)


STARTS_PROCESSES = {"run_script", "run_module", "chain"}  # names of the fixtures that start processes


def pytest_collection_modifyitems(items):
    """Mark each test that uses a fixture of STARTS_PROCESSES as `long`. `make test-fast` leaves out these tests."""
    for item in items:
        if STARTS_PROCESSES.intersection(item.fixturenames):
            item.add_marker(pytest.mark.long)


class Printed(str):
    """The output of a process. `text in printed` also finds a text that is printed on several lines."""

    def __contains__(self, text: str) -> bool:
        return super().__contains__(text) or text in " ".join(self.split())


@pytest.fixture
def note(record_property):
    """Return a function that takes a line of text. The line is printed at the end of the test run."""
    return lambda line: record_property("note", line)


def pytest_terminal_summary(terminalreporter):
    """Print the lines that the tests have passed to the fixture `note`.

    The main process prints them, because the worker processes of pytest-xdist run the tests but cannot print.
    """
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties:
            if name == "note":
                terminalreporter.write_line(line)


def run_python(
    arguments: list, stdin: str | None = None, timeout: float = 300, cwd: Path = ROOT.parent, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python in a new process and return the finished process, with stdout and stderr as objects of `Printed`.

    `cwd` is the working directory of the process. By default it is the parent folder of the project.

    Raise subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"} | environment,
        timeout=timeout,
    )
    done.stdout, done.stderr = Printed(done.stdout), Printed(done.stderr)
    return done


@pytest.fixture(scope="session")
def run_script():
    """Return a function that runs a script and returns the finished process.

    The working directory of the process is the parent folder of the project.
    """

    def run(script: str, *options: object, stdin: str | None = None, timeout: float = 300):
        return run_python([ROOT / script, *options], stdin, timeout)

    return run


@pytest.fixture(scope="session")
def run_module():
    """Return a function that runs `python -m MODULE` and returns the finished process.

    The working directory of the process is the parent folder of the project.
    """

    def run(module: str, *options: object, timeout: float = 300):
        return run_python(["-m", module, *options], None, timeout)

    return run


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """Return the directory of a tokenizer of about 500 tokens. The tests must not change the directory.

    pre_training/py/train_tokenizer.py trains the tokenizer on 384 lines. Each text of ADVICE occurs 64 times, so that
    its pieces become tokens.
    """
    import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    openings = ("", "关于", "得了", "家人有")
    lines = [
        {"text": "\n".join(f"{opening}{disease}{advice}。" for advice in ADVICE)}
        for disease in DISEASES
        for opening in openings
    ]
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    options = ["--data", str(folder / "texts.jsonl"), "--output_model", str(folder / "tiny")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_tokenizer.py", *options])
        train_tokenizer.main()
    return folder / "tiny"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_directory)


@pytest.fixture(scope="session")
def random_gpt2(tokenizer):
    """Return a function that makes an untrained GPT-2 for the tiny tokenizer, with the same weights each time.

    `initializer_range` is the standard deviation of the random weights. With 0.5, the predicted next token depends on
    all earlier tokens. With 0.02, the default of transformers, the earlier tokens have very little influence on it.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(positions: int, initializer_range: float = 0.5) -> GPT2LMHeadModel:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=positions,
            n_embd=32,
            n_layer=2,
            n_head=2,
            initializer_range=initializer_range,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return GPT2LMHeadModel(config).eval()

    return make


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, tokenizer, random_gpt2) -> Path:
    """Return a directory that a training script can load. The tests must not change the directory.

    It contains an untrained GPT-2 with 128 positions, and the tiny tokenizer.
    """
    directory = tmp_path_factory.mktemp("model") / "tiny_gpt2"
    random_gpt2(128, 0.02).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def wide_screen(monkeypatch):
    """Make the screen so wide that each message is printed on one line."""
    monkeypatch.setattr("med_model.screen.COLUMNS", 10_000)


@pytest.fixture
def new_trainer(tokenizer, random_gpt2, tmp_path):
    """Return a function that makes a small trainer of a stage. Equal arguments give equal trainers.

    stage: "pretraining", "sft" or "dpo".
    """
    from small_runs import small_trainer
    from transformers import set_seed

    def make(stage: str, **options: object):
        set_seed(7)
        return small_trainer(stage, random_gpt2(128, 0.02), tokenizer, tmp_path / "checkpoints", **options)

    return make


@pytest.fixture(scope="session")
def run(run_script):
    """Return a function that runs a script, checks the exit code, and returns stdout and stderr as one text."""

    def checked(script: str, *options: object, code: int = 0) -> Printed:
        done = run_script(script, *options)
        assert done.returncode == code, f"{script} {options}\n{done.stdout}\n{done.stderr}"
        return Printed(done.stdout + done.stderr)

    return checked


def first_rows(source: Path, target: Path, rows: int = ROWS) -> Path:
    """Copy the first `rows` lines of `source` to `target`. Return `target`."""
    target.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]), encoding="utf-8")
    return target


class Chain:
    """Hold the folders and options of a small run of all stages. The caller of a training script adds --max_steps."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text = paths.PRETRAINING_DATA / "cardiology.jsonl"
        self.rows = first_rows(paths.SFT_DATA / "cardiology.jsonl", folder / "rows.jsonl")
        self.pairs = first_rows(paths.DPO_DATA / "cardiology.jsonl", folder / "pairs.jsonl")
        self.tokenizer, self.base, self.sft, self.final = (
            folder / name for name in ("tokenizer", "base", "sft", "final")
        )
        common = ["--save_steps", 2, "--eval_steps", 2, "--logging_steps", 1, "--save_total_limit", 9]
        small = ["--per_device_train_batch_size", 2, *common]
        self.pretraining = [
            "--data",
            self.text,
            "--eval_data",
            paths.HELDOUT_TEXT,
            "--input_model",
            self.tokenizer,
            *small,
        ]
        self.sft_options = ["--data", self.rows, "--input_model", self.base, *small]
        self.dpo_options = ["--data", self.pairs, "--input_model", self.sft, "--retention_model", self.base, *small]

    def output(self, model: Path) -> list:
        return ["--output_model", model, "--output_dir", self.folder / f"{model.name}_checkpoints"]


@pytest.fixture(scope="session")
def chain(tmp_path_factory, run) -> Chain:
    """Run all stages on a small part of the bundled data, with four steps per training. Return the `Chain` of the run.

    The tests must not change the files of the run.
    """
    made = Chain(tmp_path_factory.mktemp("chain"))
    run(TOKENIZER, "--data", made.text, made.rows, "--output_model", made.tokenizer)
    run(PRETRAINING, *made.pretraining, *made.output(made.base), "--max_steps", 4)
    run(SFT, *made.sft_options, *made.output(made.sft), "--max_steps", 4)
    run(DPO, *made.dpo_options, *made.output(made.final), "--max_steps", 4)
    return made

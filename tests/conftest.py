"""What several test files need: a tiny tokenizer made by the project's own script, a tiny model, a script runner."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test touches the network

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parent.parent

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
    "请在专业医生指导下合理使用药物治疗本病",  # boilerplate, longer than a token may be
)


def load_script(script: str):
    """A script of the project as a module, for what is too slow to start once a case."""
    name = script.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_python(arguments: list, stdin: str | None, timeout: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT.parent,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def run_script():
    """Runs a script of the project as a user does, from another folder; gives the finished process with its output."""

    def run(script: str, *options: object, stdin: str | None = None, timeout: float = 300):
        return run_python([ROOT / script, *options], stdin, timeout)

    return run


@pytest.fixture(scope="session")
def run_module():
    """Runs `python -m MODULE`, as run_script does a script."""

    def run(module: str, *options: object, timeout: float = 300):
        return run_python(["-m", module, *options], None, timeout)

    return run


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory, run_script) -> Path:
    """About 500 tokens, trained by pre_training/py/train_tokenizer.py on a few lines. For reading only."""
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [{"text": "\n".join(f"{disease}{advice}。" for advice in ADVICE)} for disease in DISEASES]
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    options = ("--data", folder / "texts.jsonl", "--output_model", folder / "tiny")
    done = run_script("pre_training/py/train_tokenizer.py", *options)
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory):
    return AutoTokenizer.from_pretrained(tokenizer_directory)


@pytest.fixture(scope="session")
def random_gpt2(tokenizer):
    """Makes an untrained GPT-2 for the tiny tokenizer, the same each time.

    At an initializer_range of 0.5 what comes next depends on all that came before; at the stock 0.02 hardly at all.
    """
    import torch

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
        )
        return GPT2LMHeadModel(config).eval()

    return make


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, tokenizer) -> Path:
    """An untrained GPT-2 of 128 positions with the tiny tokenizer, as a stage would find it. For reading only."""
    import torch

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    directory = tmp_path_factory.mktemp("model") / "tiny_gpt2"
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

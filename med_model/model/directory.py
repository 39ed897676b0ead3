"""How a model directory is loaded and published: always a plain Hugging Face directory, always whole."""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from med_model import paths
from med_model.data.prompt import END_OF_TEXT, IM_END, IM_START, PAD
from med_model.errors import UserError
from med_model.files import replace_directory

LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "trl", "accelerate")
NOTICE = "学习用模型，不是医生；身体不适请就医，急症拨打120 / a study model, not a doctor; in an emergency call 120"


transformers.utils.logging.disable_progress_bar()  # loading and saving 33 MB needs none; training shows its own


def _made_by(directory: Path) -> str:
    return paths.MADE_BY.get(directory.resolve(), "the stage that makes it")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory; UserError where there is none or one that these scripts cannot use."""
    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        raise UserError(
            f"没有模型或分词器/no model or tokenizer in {paths.shown(directory)}/: run {_made_by(directory)} first"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    missing = [token for token in (PAD, END_OF_TEXT, IM_START, IM_END) if token not in tokenizer.get_vocab()]
    if missing or tokenizer.pad_token_id == tokenizer.eos_token_id or not tokenizer.chat_template:
        raise UserError(
            f"分词器不合用/the tokenizer in {paths.shown(directory)}/ lacks "
            f"{missing or 'a pad token apart from eos, or a chat template'}: "
            "make it with python pre_training/py/train_tokenizer.py"
        )
    return tokenizer


def load_model(directory: str | Path, dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (float32, on the CPU, not training) and tokenizer of a directory; `dropout` replaces the model's own.

    Raises UserError where it is missing, or its model and tokenizer disagree.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise UserError(f"没有模型/no model in {paths.shown(directory)}/: run {_made_by(directory)} first")
    tokenizer = load_tokenizer(directory)
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    dropouts = {} if dropout is None else dict.fromkeys(names, dropout)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **dropouts)
    if len(tokenizer) != model.config.vocab_size:
        raise UserError(
            f"词表不一致/{paths.shown(directory)}/: the tokenizer has {len(tokenizer):,} tokens, the model "
            f"{model.config.vocab_size:,}: "
            f"run {_made_by(directory)} again"
        )
    return model.eval(), tokenizer


def sampling_defaults(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> GenerationConfig:
    """The generation_config.json of a published model: what chats and servers sample with."""
    return GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        repetition_penalty=1.1,  # enough to break loops, too little to forbid the topic's own name
        max_new_tokens=200,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(stops)),
        pad_token_id=tokenizer.pad_token_id,
    )


def check_replaceable(directory: str | Path, overwrite: bool, marker: str) -> None:
    """UserError where `directory` exists without --overwrite, or holds no `marker`, so that it is something else."""
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise UserError(
            f"已存在/{paths.shown(directory)}/ exists: --overwrite replaces it (with --resume: give both), "
            "--output_model DIR writes elsewhere"
        )
    if directory.exists() and not (directory / marker).is_file():
        raise UserError(
            f"{paths.shown(directory)} holds no {marker}, --overwrite leaves it alone: choose another --output_model"
        )


def publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    title: str,
    stops: Sequence[str],
    metrics: dict,
    log_history: list[dict],
) -> None:
    """Writes model, tokenizer, generation settings, metrics.json, loss_curve.png and a model card to `directory`."""
    directory = Path(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = sampling_defaults(tokenizer, stops)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    metrics = {
        **metrics,
        "parameters": model.num_parameters(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    (partial / "metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_card(title, metrics), encoding="utf-8")
    _draw_loss(log_history, partial / "loss_curve.png")
    replace_directory(partial, directory)
    print(f"已发布/published: {paths.shown(directory)}/")


def _card(title: str, metrics: dict) -> str:
    plain = {name: (value,) for name, value in metrics.items() if isinstance(value, int | float)}
    measured = {
        name: (of["value"], of["low"], of["high"], of["n"]) for name, of in metrics.get("measures", {}).items()
    }
    rows = [[name, *(f"{value:,.4g}" for value in values)] for name, values in (plain | measured).items()]
    figures = "\n".join(f"| {' | '.join(row + [''] * (5 - len(row)))} |" for row in rows)
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [medical, gpt2, study]
---

# {title}

{NOTICE}

由 Med_model 从零训练。答案可能有错，不可用于诊断、用药或急救决定。
Trained from zero with Med_model. Its answers can be wrong: do not use it to diagnose, to medicate or in an emergency.

| figure | value | 95% from | to | n |
|---|---|---|---|---|
{figures}

Settings and versions: `metrics.json`; loss: `loss_curve.png`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```
"""


def _draw_loss(log_history: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)", title="training and held-out loss")
    for key, label in (("loss", "training"), ("eval_loss", "held-out")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3)
            axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)

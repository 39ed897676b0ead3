"""Make the card (README.md) of a published model, and draw its loss curve."""

from pathlib import Path


def model_card(title: str, metrics: dict) -> str:
    """Return the text of the card, the README.md of a published model: title, warning, table and example code.

    The table has one row per number in `metrics`, and one row with a 95% interval per figure in metrics["measures"].
    The card is in Chinese and English, because a published directory has readers of both languages.
    """
    numbers = {name: (value,) for name, value in metrics.items() if isinstance(value, int | float)}
    measures = {
        name: (measure["value"], measure["low"], measure["high"], measure["n"])
        for name, measure in metrics.get("measures", {}).items()
    }
    rows = [[name, *(f"{value:,.4g}" for value in values)] for name, values in (numbers | measures).items()]
    figures = "\n".join(f"| {' | '.join(row + [''] * (5 - len(row)))} |" for row in rows)
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [medical, gpt2, study]
---

# {title}

学习用模型，不是医生。身体不适请就医，急症请拨打120。
由 Med_model 从零训练。答案可能有错，不可用于诊断、用药或急救决定。

This is a study model, not a doctor. If you are ill, see a doctor. In an emergency in China, call 120.
It was trained from scratch with Med_model. Its answers can be wrong:
do not use them for diagnosis, medication or first aid.

| figure | value | 95% from | to | n |
|---|---|---|---|---|
{figures}

设置和版本见 `metrics.json`，损失曲线见 `loss_curve.png`。

Settings and versions are in `metrics.json`, the loss curve is in `loss_curve.png`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```
"""


def draw_loss(log_history: list[dict], file: Path) -> None:
    """Draw the training loss and the held-out loss over the training steps. Write the picture to the PNG file `file`.

    log_history: the Trainer's log, one dict per entry.
    """
    from matplotlib.figure import Figure  # imported here: the import takes 0.7 s, and only publishing needs it

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)", title="training and held-out loss")
    for key, label in (("loss", "training"), ("eval_loss", "held-out")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3)
            axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)

"""Load and publish a model directory. It is a plain Hugging Face directory, and it is never half written."""

from importlib.metadata import version
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from med_model import paths
from med_model.data.prompt import END_OF_TEXT, IM_END, IM_START, PAD, stop_ids
from med_model.errors import UserError
from med_model.files import write_beside, write_json
from med_model.language import tr
from med_model.model.card import draw_loss, model_card
from med_model.model.quiet import expect_tied_head, quiet_transformers
from med_model.screen import say

LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "trl", "accelerate")
NOTICE = tr("This study model is not a doctor. If you are ill, see a doctor. In an emergency in China, call 120.")

quiet_transformers()


def _next_step(directory: Path) -> str:
    """Return a sentence with the command that makes `directory`. Return general advice if the command is not known."""
    command = paths.MADE_BY.get(directory.resolve())
    return tr("Run first: {command}", command=command) if command else tr("Run the stage that makes it first.")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a directory.

    Raise UserError if there is no tokenizer, or if it lacks a special token of this project or a chat template. Also
    raise UserError if the same token is its pad token and its end token.
    """
    directory = Path(directory)
    name = paths.shown(directory)
    if not (directory / "tokenizer.json").is_file():
        next_step = _next_step(directory)
        raise UserError(
            tr("There is no model or tokenizer in {directory}/. {next_step}", directory=name, next_step=next_step)
        )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    missing = [token for token in (PAD, END_OF_TEXT, IM_START, IM_END) if token not in tokenizer.get_vocab()]
    flaws = [
        (missing, tr("it lacks the tokens {tokens}", tokens=" ".join(missing))),
        (tokenizer.pad_token_id == tokenizer.eos_token_id, tr("its pad token is also its end token")),
        (not tokenizer.chat_template, tr("it lacks a chat template")),
    ]
    for found, problem in flaws:
        if found:
            raise UserError(
                tr(
                    "The tokenizer in {directory}/ cannot be used: {problem}. Make a new one: {command}",
                    directory=name,
                    problem=problem,
                    command=paths.MADE_BY[paths.TOKENIZER],
                )
            )
    return tokenizer


def load_model(directory: str | Path, dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a directory. The model is in float32, on the CPU, in evaluation mode.

    dropout: the new dropout probability, or None to keep the probabilities of the model's configuration. The attention
    gets none: torch has no fused kernel for attention with dropout on a CPU, and an SFT step would take 1.4 times as
    long.
    Raise UserError if the model is missing, or if model and tokenizer have vocabularies of different sizes. Also
    raise UserError as `load_tokenizer` does.
    """
    directory = Path(directory)
    name = paths.shown(directory)
    if not (directory / "config.json").is_file():
        next_step = _next_step(directory)
        raise UserError(tr("There is no model in {directory}/. {next_step}", directory=name, next_step=next_step))
    tokenizer = load_tokenizer(directory)
    dropouts = {} if dropout is None else {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": 0.0}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **dropouts)
    if len(tokenizer) != model.config.vocab_size:
        raise UserError(
            tr(
                "The vocabularies in {directory}/ differ: the tokenizer has {tokens:,} tokens, the model has "
                "{vocabulary:,}. {next_step}",
                directory=name,
                tokens=len(tokenizer),
                vocabulary=model.config.vocab_size,
                next_step=_next_step(directory),
            )
        )
    expect_tied_head(model)
    return model.eval(), tokenizer


def sampling_defaults(tokenizer: PreTrainedTokenizerBase, chat: bool) -> GenerationConfig:
    """Return the settings for generation_config.json. Chats and servers sample with these settings.

    chat: False for a base model.
    """
    return GenerationConfig(
        do_sample=True,
        # At 0.7 an answer keeps fewer key facts than with greedy decoding, at 0.4 as many (docs/en/recipes.md).
        temperature=0.3 if chat else 0.7,
        top_k=40,
        top_p=0.9,
        # Without a penalty a base model repeats itself. In a conversation it forbids the words of earlier turns.
        repetition_penalty=1.0 if chat else 1.2,
        max_new_tokens=200,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer, chat),
        pad_token_id=tokenizer.pad_token_id,
    )


def check_replaceable(directory: str | Path, overwrite: bool, marker: str) -> None:
    """Raise UserError if `directory` exists and must not be replaced.

    An existing directory may be replaced only if --overwrite is given and the directory has a file named `marker`.
    Such a file shows that this project wrote the directory.
    """
    directory = Path(directory)
    name = paths.shown(directory)
    if directory.exists() and not overwrite:
        raise UserError(
            tr(
                "{directory}/ exists already. Replace it with --overwrite (add it to --resume too), "
                "or write to another directory with --output_model DIR.",
                directory=name,
            )
        )
    if directory.exists() and not (directory / marker).is_file():
        raise UserError(
            tr(
                "{directory} has no {marker}, so --overwrite does not replace it. Choose another --output_model DIR.",
                directory=name,
                marker=marker,
            )
        )


def publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    title: str,
    chat: bool,
    metrics: dict,
    log_history: list[dict],
) -> None:
    """Write a model directory: weights, tokenizer, generation settings, metrics, log, loss curve and card (README.md).

    If the directory exists already, the old one stays until the new one is complete.
    title: the heading of the card, in English. chat: False for a base model.
    metrics: values for metrics.json and the card. log_history: the Trainer's log, one dict per entry.
    """
    model.generation_config = sampling_defaults(tokenizer, chat)
    model.config.use_cache = True  # the Trainer sets it to False; users of the published model generate with a cache
    metrics = {
        **metrics,
        "parameters": model.num_parameters(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    with write_beside(directory) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "metrics.json", metrics)
        write_json(partial / "history.json", log_history)
        (partial / "README.md").write_text(model_card(title, metrics), encoding="utf-8")
        draw_loss(log_history, partial / "loss_curve.png")
    say(tr("The model is published in {directory}/.", directory=paths.shown(directory)))

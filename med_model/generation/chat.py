"""Run a chat script: answer one --prompt, the lines of a pipe, or a person at the terminal."""

import argparse
import math
import sys
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.command import examples
from med_model.errors import UserError
from med_model.generation.conversation import Conversation
from med_model.generation.terminal import answer_lines, converse, print_answer
from med_model.language import tr
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model, sampling_defaults

RANGES = {  # option: (minimum, maximum)
    "max_new_tokens": (1, math.inf),
    "temperature": (0, math.inf),
    "top_k": (0, math.inf),
    "top_p": (1e-6, 1),
    "repetition_penalty": (1e-6, math.inf),
}


def _parse_options(description: str, script_docstring: str, model_directory: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples(script_docstring),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_help = tr("Directory of the model. Default: {directory}", directory=paths.shown(model_directory))
    parser.add_argument("--model", default=str(model_directory), help=model_help)
    parser.add_argument("--prompt", help=tr("Answer this prompt and exit."))
    parser.add_argument("--max_new_tokens", type=int, help=tr("The longest answer, in tokens."))
    parser.add_argument(
        "--temperature",
        type=float,
        help=tr("A higher temperature makes answers more random. 0 always takes the most likely token (greedy)."),
    )
    parser.add_argument("--top_k", type=int, help=tr("Sample from this many of the most likely tokens. 0 means all."))
    parser.add_argument(
        "--top_p", type=float, help=tr("Sample from the most likely tokens that together have this probability.")
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        help=tr("A value above 1 makes the tokens of the prompt and of the answer less likely to come again."),
    )
    parser.add_argument("--seed", type=int, help=tr("The same seed gives the same answers."))
    return parser.parse_args()


def sampling_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, turns: bool
) -> GenerationConfig:
    """Return the settings in the model's generation_config.json, changed by the options of the command line.

    The settings of a training checkpoint are incomplete, so a checkpoint gets the settings of a published model.
    turns: True for a chat model, False for a base model. Raise UserError if an option is outside its range.
    """
    settings = model.generation_config
    if settings.max_new_tokens is None:
        settings = sampling_defaults(tokenizer, turns)
    for name, (minimum, maximum) in RANGES.items():
        value = getattr(options, name)
        if value is None:
            continue
        if not minimum <= value <= maximum:
            raise UserError(_range_error(name, value, minimum, maximum))
        setattr(settings, name, value)
    if settings.temperature == 0:
        settings.do_sample = False
    return settings


def _range_error(name: str, value: float, minimum: float, maximum: float) -> str:
    if maximum == math.inf:
        return tr(
            "--{option} {value} is too small. The minimum is {minimum:g}.", option=name, value=value, minimum=minimum
        )
    return tr(
        "--{option} {value} is out of range. Give a value from {minimum:g} to {maximum:g}.",
        option=name,
        value=value,
        minimum=minimum,
        maximum=maximum,
    )


def run_chat(description: str, script_docstring: str, model_directory: Path, turns: bool = True) -> None:
    """Run a chat script. With `turns` False the model continues each input instead of answering it.

    --help shows `description`, and the commands of `script_docstring` as examples. `model_directory` is the default
    of --model. Raise UserError if the directory of --model has no usable model, if an option is outside its range,
    and as `Chat.prompt_ids` does.
    """
    options = _parse_options(description, script_docstring, model_directory)
    model, tokenizer = load_model(options.model)
    model.to(pick_device())
    settings = sampling_settings(model, tokenizer, options, turns)
    conversation = Conversation(model, tokenizer, settings, options.seed, turns)
    print(NOTICE, file=sys.stderr)
    if options.prompt is not None:
        print_answer(conversation, options.prompt)
    elif sys.stdin.isatty():
        converse(conversation)
    else:  # a pipe: each line is one input; for a chat model, all lines are one conversation
        answer_lines(conversation, sys.stdin)

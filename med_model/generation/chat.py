"""Run a chat script: answer one --prompt, the lines of a pipe, or a person at the terminal."""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.command import examples
from med_model.data.prompt import BASE_STOPS, CHAT_STOPS, fit_prompt, fit_text
from med_model.data.records import Message
from med_model.errors import UserError
from med_model.generation.sampling import prompt_room, stream_text
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
        settings = sampling_defaults(tokenizer, CHAT_STOPS if turns else BASE_STOPS)
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


class Chat:
    """Hold a conversation with a model. `history` has the messages so far.

    turns: False for a base model. A base model continues a text, and the history stays empty.
    seed: the seed of the random numbers, or None for a random seed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationConfig,
        seed: int | None,
        turns: bool,
    ):
        self.model, self.tokenizer, self.settings, self.turns = model, tokenizer, settings, turns
        self.generator = torch.Generator(device=model.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.history: list[Message] = []

    def prompt_ids(self, text: str) -> list[int]:
        """Return the input_ids of the prompt for the next answer.

        If the prompt is too long, its oldest part is left out, and a notice is printed.
        Raise UserError if the model is not a GPT-2, or if --max_new_tokens leaves no room for a question.
        """
        room = prompt_room(self.model, self.settings)
        if not self.turns:
            ids, shortened = fit_text(self.tokenizer, text, room)
        else:
            ids, shortened = fit_prompt(self.tokenizer, [*self.history, {"role": "user", "content": text}], room)
        if shortened:
            print(tr("The context is full. Its oldest part is left out."), file=sys.stderr)
        return ids

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to `text` in pieces of whole characters.

        If `turns` is True, add `text` and the answer to the history, even if the answer ends early.
        Raise UserError as `prompt_ids` does.
        """
        pieces = []
        try:
            for piece in stream_text(self.model, self.tokenizer, self.prompt_ids(text), self.settings, self.generator):
                pieces.append(piece)
                yield piece
        finally:  # Ctrl-C ends an answer early; the history keeps the pieces so far
            if self.turns:
                self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(pieces)}]


def _print_answer(chat: Chat, text: str) -> None:
    if not chat.turns:
        print(text, end="", flush=True)
    try:
        for piece in chat.say(text):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" … " + tr("(stopped)"), end="")
    print(flush=True)


def _converse(chat: Chat) -> None:
    """Answer a person at the terminal until Ctrl-D."""
    print(
        tr("Enter sends your text, /clear forgets the conversation, Ctrl-C stops an answer, Ctrl-D exits."),
        file=sys.stderr,
    )
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n" + tr("Press Ctrl-D to exit."), file=sys.stderr)
            continue
        if text == "/clear":
            chat.history.clear()
        elif text:
            _print_answer(chat, text)


def run_chat(description: str, script_docstring: str, model_directory: Path, turns: bool = True) -> None:
    """Run a chat script. With `turns` False the model continues each input instead of answering it.

    --help shows `description`, and the commands of `script_docstring` as examples. `model_directory` is the default
    of --model. Raise UserError if the directory of --model has no usable model, if an option is outside its range,
    and as `Chat.prompt_ids` does.
    """
    options = _parse_options(description, script_docstring, model_directory)
    model, tokenizer = load_model(options.model)
    model.to(pick_device())
    chat = Chat(model, tokenizer, sampling_settings(model, tokenizer, options, turns), options.seed, turns)
    print(NOTICE, file=sys.stderr)
    if options.prompt is not None:
        _print_answer(chat, options.prompt)
    elif sys.stdin.isatty():
        _converse(chat)
    else:  # a pipe: each line is one input; for a chat model, all lines are one conversation
        for line in sys.stdin:
            if line.strip():
                _print_answer(chat, line.strip())

"""The loop of the three chat scripts: one answer for `--prompt` or a pipe, or a conversation in the terminal."""

import argparse
import sys
from collections.abc import Iterator

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.data.prompt import BASE_STOPS, CHAT_STOPS, fit_prompt, fit_text
from med_model.data.records import Message
from med_model.errors import UserError
from med_model.generation.sampling import prompt_room, stream_text
from med_model.model.device import pick_device
from med_model.model.directory import NOTICE, load_model, sampling_defaults


def _arguments(description: str, model_directory) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=str(model_directory), help=f"model directory (default: {paths.shown(model_directory)})"
    )
    parser.add_argument("--prompt", help="answer this once and end")
    parser.add_argument("--max_new_tokens", type=int, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token each time (greedy)")
    parser.add_argument("--top_k", type=int, help="sample among this many likeliest tokens; 0: all")
    parser.add_argument("--top_p", type=float, help="sample among the likeliest tokens of this total probability")
    parser.add_argument("--repetition_penalty", type=float, help="above 1 discourages what has been said")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    return parser.parse_args()


RANGES = {  # option: (least, most)
    "max_new_tokens": (1, float("inf")),
    "temperature": (0, float("inf")),
    "top_k": (0, float("inf")),
    "top_p": (1e-6, 1),
    "repetition_penalty": (1e-6, float("inf")),
}


def sampling_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, turns: bool
) -> GenerationConfig:
    """The model's own generation_config.json with the options of the command line on top.

    A checkpoint has none of its own yet and takes the defaults that its published model will have.
    """
    settings = model.generation_config
    if settings.max_new_tokens is None:
        settings = sampling_defaults(tokenizer, CHAT_STOPS if turns else BASE_STOPS)
    for name, (least, most) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give a value from {least:g} to {most:g}")
        if value is not None:
            setattr(settings, name, value)
    if settings.temperature == 0:
        settings.do_sample = False
    return settings


class Chat:
    """A conversation with a model: `say` streams the answer to the next input and remembers both."""

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
        """The ids that the answer to `text` is generated from, cut from the front to leave room for it."""
        room = prompt_room(self.model, self.settings)
        if not self.turns:
            ids, shortened = fit_text(self.tokenizer, text, room)
        else:
            ids, shortened = fit_prompt(self.tokenizer, [*self.history, {"role": "user", "content": text}], room)
        if shortened:
            print("（上下文已满，最早的内容不再参与/context full: the oldest part is left out）", file=sys.stderr)
        return ids

    def say(self, text: str) -> Iterator[str]:
        pieces = []
        try:
            for piece in stream_text(self.model, self.tokenizer, self.prompt_ids(text), self.settings, self.generator):
                pieces.append(piece)
                yield piece
        finally:  # an answer stopped by Ctrl-C stays in the history as far as it came
            if self.turns:
                self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(pieces)}]


def _print_answer(chat: Chat, text: str) -> None:
    if not chat.turns:
        print(text, end="", flush=True)
    try:
        for piece in chat.say(text):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …（已停止/stopped）", end="")
    print(flush=True)


def run_chat(description: str, model_directory, turns: bool = True) -> None:
    """A whole chat script; without `turns` the model continues the text instead of answering it."""
    options = _arguments(description, model_directory)
    model, tokenizer = load_model(options.model)
    model.to(pick_device())
    chat = Chat(model, tokenizer, sampling_settings(model, tokenizer, options, turns), options.seed, turns)
    print(NOTICE, file=sys.stderr)
    if options.prompt is not None:
        _print_answer(chat, options.prompt)
        return
    if not sys.stdin.isatty():  # a pipe: one input a line, one answer each, all one conversation
        for line in sys.stdin:
            if line.strip():
                _print_answer(chat, line.strip())
        return
    print(
        "回车发送，/clear 清空，Ctrl-C 停止回答，Ctrl-D 退出 / "
        "Enter sends, /clear forgets, Ctrl-C stops an answer, Ctrl-D ends",
        file=sys.stderr,
    )
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n（Ctrl-D 退出/Ctrl-D ends）", file=sys.stderr)
            continue
        if text == "/clear":
            chat.history.clear()
        elif text:
            _print_answer(chat, text)

"""Hold a conversation with a model, and stream its answers."""

import sys
from collections.abc import Iterator

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import fit_prompt, fit_text
from med_model.data.records import Message
from med_model.generation.sampling import prompt_room, stream_text
from med_model.language import tr


class Conversation:
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

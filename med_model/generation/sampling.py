"""The one way text is generated here: with a key-value cache, for one prompt or a batch, token by token."""

from collections.abc import Iterator, Sequence

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.errors import UserError
from med_model.generation.decoder import Decoder, require_gpt2

BROKEN = "\ufffd"  # what bytes that make no character decode to: a model may produce them, nobody can read them
# Rows of a batch. 200 exam questions on one core: 32 rows 1.88 s, 64 1.67, 100 1.74, 200 1.82. At 512 positions 64
# rows of our models keep 268 MB of keys and values.
BATCH_SIZE = 64


def _stops(settings: GenerationConfig) -> set[int]:
    return set(torch.tensor(settings.eos_token_id).reshape(-1).tolist())


def _choose(logits: Tensor, said: Tensor, settings: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """The next token of each row, (rows,), chosen as `model.generate` does, from the same random numbers.

    `logits` (rows, vocab) are changed in place; `said` (rows, n) are the ids that the repetition penalty is for.
    """
    scores = logits.float()
    if settings.repetition_penalty not in (None, 1.0):
        old = scores.gather(1, said)
        penalized = torch.where(old < 0, old * settings.repetition_penalty, old / settings.repetition_penalty)
        scores.scatter_(1, said, penalized)
    if not settings.do_sample:
        return scores.max(-1).indices  # the first of the largest as argmax, in a third of its time on a CPU
    if settings.temperature not in (None, 1.0):
        scores = scores / settings.temperature
    if settings.top_k or settings.top_p not in (None, 1.0):
        scores = torch.where(scores < _least_kept(scores, settings), -torch.inf, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def _least_kept(scores: Tensor, settings: GenerationConfig) -> Tensor:
    """The smallest score of each row that top-k and then top-p keep, (rows, 1)."""
    count = min(settings.top_k or scores.shape[-1], scores.shape[-1])
    rising = scores.topk(count).values.flip(-1)  # (rows, count): 0.04 ms for 40 of 20,000, sorting them all 1 ms
    if settings.top_p in (None, 1.0):
        return rising[:, :1]
    dropped = (rising.softmax(-1).cumsum(-1) <= 1 - settings.top_p).sum(-1, keepdim=True)
    return rising.gather(1, dropped.clamp(max=count - 1))


def prompt_room(model: PreTrainedModel, settings: GenerationConfig) -> int:
    """Tokens that a prompt may have, so that the longest answer fits behind it; UserError where there are none."""
    require_gpt2(model)
    room = model.config.n_positions - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max_new_tokens {settings.max_new_tokens}: the model has {model.config.n_positions} positions for "
            "prompt and answer: give less"
        )
    return room


@torch.inference_mode()
def generate_ids(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: GenerationConfig,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields the next token of every prompt, (batch,) on the CPU, until each has stopped.

    A row that has stopped goes on as pad. Ends after settings.max_new_tokens, or where the model's positions end.
    Raises UserError for a model that is not a GPT-2.
    """
    require_gpt2(model)
    width = max(map(len, prompts))
    room = min(settings.max_new_tokens, model.config.n_positions - width)
    if room < 1:
        return
    stops = _stops(settings)
    # Filled up with a token that the prompt has said anyway, so that the penalty is what it is for the prompt alone.
    said = torch.tensor([prompt + prompt[-1:] * (width + room - len(prompt)) for prompt in prompts])
    said = said.to(model.device)  # (rows, width + room)
    decoder = Decoder(model, len(prompts), width + room)
    logits = decoder.prefill(prompts)
    owners = list(range(len(prompts)))  # the prompt that each row of the decoder belongs to
    for length in range(width, width + room):
        chosen = _choose(logits, said[:, :length], settings, generator)
        said[:, length] = chosen
        tokens, column = chosen.tolist(), [settings.pad_token_id] * len(prompts)
        for owner, token in zip(owners, tokens, strict=True):
            column[owner] = token
        yield torch.tensor(column)
        running = [row for row, token in enumerate(tokens) if token not in stops]
        if not running or length + 1 == width + room:
            return
        if len(running) < len(tokens):  # at once: moving a row costs about what computing it for one step would
            order = decoder.keep(running)
            owners, chosen, said = [owners[row] for row in order], chosen[order], said[order]
        logits = decoder.step(chosen)


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    settings: GenerationConfig,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yields the text that follows on one prompt as soon as whole characters are there."""
    decoder = DecodeStream(skip_special_tokens=True)
    ids, shown = [], 0
    for chosen in generate_ids(model, [prompt], settings, generator):
        ids.append(int(chosen))
        if piece := decoder.step(tokenizer.backend_tokenizer, ids[-1]):
            shown += len(piece)
            yield piece.replace(BROKEN, "")
    # An answer cut off inside a character: what is whole before it is still owed.
    if rest := tokenizer.decode(ids, skip_special_tokens=True)[shown:].replace(BROKEN, ""):
        yield rest


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: GenerationConfig,
    batch_size: int = BATCH_SIZE,
) -> list[tuple[str, bool]]:
    """(text, whether it stopped by itself) for each prompt; in batches of prompts of like length, longest first."""
    stops = _stops(settings)
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        columns = list(generate_ids(model, [prompts[i] for i in rows], settings))
        for i, *ids in zip(rows, *(column.tolist() for column in columns), strict=True):
            end = next((place for place, token in enumerate(ids) if token in stops), None)
            answers[i] = (tokenizer.decode(ids[:end], skip_special_tokens=True).replace(BROKEN, ""), end is not None)
    return answers


def greedy(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], max_new_tokens: int) -> GenerationConfig:
    """The settings that measures are taken with: the likeliest token each time, nothing discouraged."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(stops)),
        pad_token_id=tokenizer.pad_token_id,
    )

"""The one way text is generated here: a loop with a key-value cache, for one prompt or a batch, token by token."""

from collections.abc import Iterator

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from med_model.command import UserError

BROKEN = "\ufffd"  # what bytes that make no character decode to: a model may produce them, nobody can read them


def _processors(settings: GenerationConfig) -> LogitsProcessorList:
    """The processors of `model.generate`, in its order."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample:
        if settings.temperature not in (None, 1.0):
            processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p not in (None, 1.0):
            processors.append(TopPLogitsWarper(settings.top_p))
    return processors


def prompt_room(model: PreTrainedModel, settings: GenerationConfig) -> int:
    """Tokens that a prompt may have, so that the longest answer fits behind it; UserError where there are none."""
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
    """
    device = model.device
    width = max(map(len, prompts))
    pad, stops = settings.pad_token_id, torch.tensor(settings.eos_token_id, device=device).reshape(-1)
    # Left padding, so that all rows end, and go on, at the same column.
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = bool((mask == 0).any())
    cache = DynamicCache(config=model.config)
    processors = _processors(settings)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    step_ids = ids
    for _ in range(min(settings.max_new_tokens, model.config.n_positions - width)):
        logits = model(
            input_ids=step_ids,
            position_ids=positions,
            attention_mask=mask if padded else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = processors(ids, logits.float())
        if settings.do_sample:
            chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen = scores.argmax(-1)
        chosen = torch.where(running, chosen, pad)
        yield chosen.cpu()
        running = running & ~torch.isin(chosen, stops)
        if not running.any():
            return
        step_ids = chosen[:, None]
        ids = torch.cat([ids, step_ids], dim=1)
        mask = torch.cat([mask, torch.ones_like(step_ids)], dim=1)
        positions = positions[:, -1:] + 1


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
    batch_size: int = 32,
) -> list[tuple[str, bool]]:
    """(text, whether it stopped by itself) for each prompt; in batches of prompts of like length."""
    stops = set(torch.tensor(settings.eos_token_id).reshape(-1).tolist())
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        columns = list(generate_ids(model, [prompts[i] for i in rows], settings))
        for i, *ids in zip(rows, *(column.tolist() for column in columns), strict=True):
            end = next((place for place, token in enumerate(ids) if token in stops), None)
            answers[i] = (tokenizer.decode(ids[:end], skip_special_tokens=True).replace(BROKEN, ""), end is not None)
    return answers

"""Generate text, token by token, for one prompt or for a batch. All scripts generate with this module.

The one exception is benchmarks/reference.py, which measures `model.generate`.
"""

from collections.abc import Iterator

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import stop_ids
from med_model.errors import UserError
from med_model.generation.decoder import Decoder, require_gpt2
from med_model.language import tr

REPLACEMENT = "\ufffd"  # decoded from invalid UTF-8, which a model can generate; removed from the generated text
# Prompts per batch. Measured on one core, 200 questions take 1.88 s in batches of 32, 1.67 s in batches of 64, 1.74 s
# in batches of 100, and 1.82 s in one batch. In a model with 4 layers of width 256, the keys and values of 64 prompts
# with their answers take 268 MB, at 512 tokens each.
BATCH_SIZE = 64


def _stops_in(settings: GenerationConfig) -> set[int]:
    return set(torch.tensor(settings.eos_token_id).reshape(-1).tolist())


def _next_ids(
    logits: Tensor, previous_ids: Tensor, settings: GenerationConfig, generator: torch.Generator | None
) -> Tensor:
    """Choose the next token of each row. Return the token ids, (rows,).

    With the same random numbers, `model.generate` would choose the same tokens.

    logits: (rows, vocab). This function may change them in place.
    previous_ids: (rows, n), the tokens that the repetition penalty makes less likely.
    """
    scores = logits.float()
    if settings.repetition_penalty not in (None, 1.0):
        previous = scores.gather(1, previous_ids)
        penalized = torch.where(
            previous < 0, previous * settings.repetition_penalty, previous / settings.repetition_penalty
        )
        scores.scatter_(1, previous_ids, penalized)
    if not settings.do_sample:
        return scores.max(-1).indices  # the same index as argmax, in a third of its time on a CPU
    if settings.temperature not in (None, 1.0):
        scores = scores / settings.temperature
    if settings.top_k or settings.top_p not in (None, 1.0):
        scores = torch.where(scores < _lowest_kept_score(scores, settings), -torch.inf, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def _lowest_kept_score(scores: Tensor, settings: GenerationConfig) -> Tensor:
    """Return the lowest score of each row that remains after top-k and then top-p, (rows, 1)."""
    count = min(settings.top_k or scores.shape[-1], scores.shape[-1])
    # For the 40 highest of 20,000 scores, topk takes 0.04 ms. Sorting all scores takes 1 ms.
    ascending = scores.topk(count).values.flip(-1)  # (rows, count)
    if settings.top_p in (None, 1.0):
        return ascending[:, :1]
    dropped = (ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p).sum(-1, keepdim=True)
    return ascending.gather(1, dropped.clamp(max=count - 1))


def prompt_room(model: PreTrainedModel, settings: GenerationConfig) -> int:
    """Return the largest number of prompt tokens that leaves room for an answer of max_new_tokens tokens.

    Raise UserError if the model is not a GPT-2, or if no room is left for a prompt.
    """
    require_gpt2(model)
    room = model.config.n_positions - settings.max_new_tokens
    if room < 1:
        raise UserError(
            tr(
                "--max_new_tokens {tokens} is too much: the model has {positions} positions for prompt and answer "
                "together. Give a smaller number.",
                tokens=settings.max_new_tokens,
                positions=model.config.n_positions,
            )
        )
    return room


@torch.inference_mode()
def generate_ids(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: GenerationConfig,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield one tensor per step, (batch,) on the CPU: the next token of every prompt.

    After its stop token, a prompt gets the pad token in each step. Generation ends after the step in which the last
    prompt gets its stop token, or after settings.max_new_tokens steps. It also ends when the longest prompt and the
    tokens after it fill all positions of the model. Raise UserError if the model is not a GPT-2.
    """
    require_gpt2(model)
    width = max(map(len, prompts))
    room = min(settings.max_new_tokens, model.config.n_positions - width)
    if room < 1:
        return
    stops = _stops_in(settings)
    # Pad each row with the last token of its prompt. The repetition penalty applies to this token anyway, so the
    # padding does not change the result.
    previous_ids = torch.tensor([prompt + prompt[-1:] * (width + room - len(prompt)) for prompt in prompts])
    previous_ids = previous_ids.to(model.device)  # (rows, width + room)
    decoder = Decoder(model, len(prompts), width + room)
    logits = decoder.prefill(prompts)
    prompt_indices = list(range(len(prompts)))  # the index of the prompt in each row of the decoder
    for length in range(width, width + room):
        next_ids = _next_ids(logits, previous_ids[:, :length], settings, generator)
        previous_ids[:, length] = next_ids
        tokens, column = next_ids.tolist(), [settings.pad_token_id] * len(prompts)
        for index, token in zip(prompt_indices, tokens, strict=True):
            column[index] = token
        yield torch.tensor(column)
        running = [row for row, token in enumerate(tokens) if token not in stops]
        if not running or length + 1 == width + room:
            return
        # Drop stopped rows at once: moving another row to the place of a stopped row takes about as long as one more
        # step of the stopped row.
        if len(running) < len(tokens):
            old_rows = decoder.keep(running)
            prompt_indices = [prompt_indices[row] for row in old_rows]
            next_ids, previous_ids = next_ids[old_rows], previous_ids[old_rows]
        logits = decoder.step(next_ids)


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    settings: GenerationConfig,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yield the generated text after one prompt, in pieces of whole characters.

    Raise UserError if the model is not a GPT-2.
    """
    decoder = DecodeStream(skip_special_tokens=True)
    ids, length = [], 0  # length: the number of characters decoded so far
    for next_ids in generate_ids(model, [prompt], settings, generator):
        ids.append(int(next_ids))
        if piece := decoder.step(tokenizer.backend_tokenizer, ids[-1]):
            length += len(piece)
            yield piece.replace(REPLACEMENT, "")
    # If the text ends inside a character, the stream has not yet returned the whole characters of the last tokens. So
    # decode all tokens again, and yield the rest of the text.
    if rest := tokenizer.decode(ids, skip_special_tokens=True)[length:].replace(REPLACEMENT, ""):
        yield rest


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: GenerationConfig,
    batch_size: int = BATCH_SIZE,
    generator: torch.Generator | None = None,
) -> list[tuple[str, bool]]:
    """Return (text, stopped) for each prompt, in the order of `prompts`.

    `stopped` is True if a stop token ended the text. A batch holds prompts of similar length, so that little padding
    is needed. generator: the source of random numbers for sampled answers.
    Raise UserError if the model is not a GPT-2.
    """
    stops = _stops_in(settings)
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        columns = list(generate_ids(model, [prompts[i] for i in rows], settings, generator))
        for i, *ids in zip(rows, *(column.tolist() for column in columns), strict=True):
            end = next((index for index, token in enumerate(ids) if token in stops), None)
            text = tokenizer.decode(ids[:end], skip_special_tokens=True).replace(REPLACEMENT, "")
            answers[i] = (text, end is not None)
    return answers


def greedy(tokenizer: PreTrainedTokenizerBase, chat: bool, max_new_tokens: int) -> GenerationConfig:
    """Return generation settings that always choose the most likely token, without a repetition penalty.

    chat: False for a base model. max_new_tokens: the longest answer, in tokens.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids(tokenizer, chat),
        pad_token_id=tokenizer.pad_token_id,
    )

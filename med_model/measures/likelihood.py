"""What a model thinks of given texts: log-probabilities of documents, of two answers, of several options."""

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import END_OF_TEXT, IGNORE, IM_END, PROMPT_SHARE, Pair, encode_text, question_ids
from med_model.data.records import Choice
from med_model.model.head import label_log_probs

WINDOW_OVERLAP = 0.5  # of a window is context already scored by the window before
BATCH_TOKENS = 4096


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """(summed log-probability in nats, number of tokens) of each row's second ids after its first."""
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    while order:
        longest = sum(map(len, rows[order[0]]))
        batch, order = order[: max(1, BATCH_TOKENS // longest)], order[max(1, BATCH_TOKENS // longest) :]
        ids = [torch.tensor(rows[i][0] + rows[i][1]) for i in batch]
        labels = [torch.tensor([IGNORE] * len(rows[i][0]) + rows[i][1]) for i in batch]
        # Filled up on the right, where causal attention never looks, so that no mask is needed.
        filler = model.config.eos_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=filler).to(model.device)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORE).to(model.device)[:, 1:]
        mask = targets != IGNORE
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        log_probs = torch.zeros(mask.shape, device=model.device)
        log_probs[mask] = label_log_probs(hidden[mask], model.get_output_embeddings().weight, targets[mask])
        for i, total, count in zip(batch, log_probs.cpu().double().sum(1).tolist(), mask.sum(1).tolist(), strict=True):
            results[i] = (total, count)
    return results


def text_bits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[float, int]]:
    """(-log2 p, UTF-8 bytes) of each text, on its own after `<|endoftext|>`.

    A text longer than the model's positions is scored in windows that overlap by WINDOW_OVERLAP; a token counts once.
    """
    start_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    window = model.config.n_positions
    step = window - int(window * WINDOW_OVERLAP)
    rows, owners = [], []
    for owner, ids in enumerate(encode_text(tokenizer, list(texts))):
        ids = [start_id, *ids]
        scored = 1
        while scored < len(ids):
            end = min(len(ids), window if scored == 1 else scored + step)
            rows.append((ids[max(0, end - window) : scored], ids[scored:end]))
            owners.append(owner)
            scored = end
    bits = [0.0] * len(texts)
    for owner, (nats, _) in zip(owners, score(model, rows), strict=True):
        bits[owner] -= nats / math.log(2)
    return [(of_text, len(text.encode())) for of_text, text in zip(bits, texts, strict=True)]


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """-log2 p over the UTF-8 bytes of all texts: comparable across tokenizers."""
    bits, sizes = zip(*text_bits(model, tokenizer, texts), strict=True)
    return sum(bits) / sum(sizes)


def preference_scores(model: PreTrainedModel, pairs: Sequence[Pair]) -> list[tuple[float, float, float, float]]:
    """(chosen sum, rejected sum, chosen mean, rejected mean) of log-probabilities in nats for each pair."""
    scored = score(
        model, [row for p in pairs for row in ((p.prompt_ids, p.chosen_ids), (p.prompt_ids, p.rejected_ids))]
    )
    return [
        (good, bad, good / good_count, bad / bad_count)
        for (good, good_count), (bad, bad_count) in zip(scored[::2], scored[1::2], strict=True)
    ]


def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Sequence[Choice], chat: bool = True
) -> list[int]:
    """The option of each multiple-choice item that is the likeliest answer, by the mean of its tokens and its stop."""
    stop = tokenizer.convert_tokens_to_ids(IM_END if chat else END_OF_TEXT)
    rows = []
    for question, options, _ in choices:
        turns = [{"role": "user", "content": question}]
        prompt_ids = question_ids(tokenizer, turns, int(model.config.n_positions * PROMPT_SHARE), chat)
        rows += [(prompt_ids, [*encode_text(tokenizer, option), stop]) for option in options]
    means = iter([total / count for total, count in score(model, rows)])
    likelihoods = [[next(means) for _ in options] for _, options, _ in choices]
    return [of_item.index(max(of_item)) for of_item in likelihoods]

"""Compute the log-probabilities of documents, of chosen and rejected answers, and of multiple-choice options."""

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import END_OF_TEXT, IGNORE, IM_END, PROMPT_SHARE, EncodedPair, encode_question, encode_text
from med_model.data.records import Choice
from med_model.model.head import label_log_probs

# A text that does not fit into the model at once is scored in windows. At least this share of each later window
# repeats tokens of the window before. The repeated tokens are only context.
WINDOW_OVERLAP = 0.5
BATCH_TOKENS = 4096  # largest number of tokens per forward pass, with padding; a row of more tokens is its own batch


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """Return (sum of the log-probabilities of the scored ids in nats, number of scored ids) per row.

    A row is (context ids, scored ids). The model predicts each scored id from all ids before it, so the context must
    have at least one id.
    """
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    while order:
        longest = sum(map(len, rows[order[0]]))
        batch, order = order[: max(1, BATCH_TOKENS // longest)], order[max(1, BATCH_TOKENS // longest) :]
        ids = [torch.tensor(rows[i][0] + rows[i][1]) for i in batch]
        labels = [torch.tensor([IGNORE] * len(rows[i][0]) + rows[i][1]) for i in batch]
        # The padding is on the right. Causal attention never looks to the right, so no attention mask is needed.
        padding = model.config.eos_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=padding).to(model.device)  # (batch, seq)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORE).to(model.device)[:, 1:]
        mask = targets != IGNORE  # (batch, seq - 1)
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        log_probs = torch.zeros(mask.shape, device=model.device)
        log_probs[mask] = label_log_probs(hidden[mask], model.get_output_embeddings().weight, targets[mask])
        for i, total, count in zip(batch, log_probs.cpu().double().sum(1).tolist(), mask.sum(1).tolist(), strict=True):
            results[i] = (total, count)
    return results


def text_bits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[float, int]]:
    """Return (bits, number of UTF-8 bytes) per text. The bits are -log2 of the text's probability.

    The model reads `<|endoftext|>` before the text. If both together have more tokens than the model has positions,
    the text is scored in overlapping windows (WINDOW_OVERLAP). Even then each token is scored only once.
    """
    start_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    window = model.config.n_positions
    step = window - int(window * WINDOW_OVERLAP)
    rows, text_numbers = [], []
    for number, ids in enumerate(encode_text(tokenizer, list(texts))):
        ids = [start_id, *ids]
        scored = 1
        while scored < len(ids):
            end = min(len(ids), window if scored == 1 else scored + step)
            rows.append((ids[max(0, end - window) : scored], ids[scored:end]))
            text_numbers.append(number)
            scored = end
    bits = [0.0] * len(texts)
    for number, (nats, _) in zip(text_numbers, score(model, rows), strict=True):
        bits[number] -= nats / math.log(2)
    return list(zip(bits, (len(text.encode()) for text in texts), strict=True))


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the bits of all texts, as in `text_bits`, divided by the number of their UTF-8 bytes.

    The number of bytes does not depend on the tokenizer, so models with different tokenizers can be compared.
    """
    bits, sizes = zip(*text_bits(model, tokenizer, texts), strict=True)
    return sum(bits) / sum(sizes)


def preference_scores(model: PreTrainedModel, pairs: Sequence[EncodedPair]) -> list[tuple[float, float, float, float]]:
    """Return four log-probabilities per pair, in nats: (chosen sum, rejected sum, chosen mean, rejected mean).

    A sum covers the tokens of an answer and its stop token. A mean is this sum divided by the number of these tokens.
    """
    rows = [(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    scored = score(model, rows)
    return [
        (good, bad, good / good_count, bad / bad_count)
        for (good, good_count), (bad, bad_count) in zip(scored[::2], scored[1::2], strict=True)
    ]


def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Sequence[Choice], chat: bool = True
) -> list[int]:
    """Return the index of the most likely option of each question.

    This is the option with the highest mean log-probability per token. The stop token counts as one of its tokens.
    chat: False for a base model. Raise UserError if not even an empty question fits into a chat prompt.
    """
    stop = tokenizer.convert_tokens_to_ids(IM_END if chat else END_OF_TEXT)
    rows = []
    for choice in choices:
        turns = [{"role": "user", "content": choice.question}]
        prompt_ids = encode_question(tokenizer, turns, int(model.config.n_positions * PROMPT_SHARE), chat)
        rows += [(prompt_ids, [*encode_text(tokenizer, option), stop]) for option in choice.options]
    means = iter([total / count for total, count in score(model, rows)])
    likelihoods = [[next(means) for _ in choice.options] for choice in choices]
    return [option_means.index(max(option_means)) for option_means in likelihoods]

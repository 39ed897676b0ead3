"""The language-model head and its loss, in chunks of tokens: the full (tokens, vocabulary) logits are never held.

At this size the head is three fifths of the arithmetic, and its temporaries cost more than the arithmetic: the logits
of 4 x 512 tokens over 20,000 words are 164 MB, touched several times. A chunk of them stays in the processor's cache.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from med_model.prompt import IGNORE

CHUNK_TOKENS = {"cpu": 256}  # measured on two cores of an AVX-512 server: 128 to 512 alike, 2048 a fifth slower
DEFAULT_CHUNK_TOKENS = 4096  # a GPU wants large products; 4096 x 20,000 floats are 330 MB


def _chunks(hidden: Tensor) -> range:
    return range(0, hidden.size(0), CHUNK_TOKENS.get(hidden.device.type, DEFAULT_CHUNK_TOKENS))


def _logits(hidden: Tensor, weight: Tensor, start: int) -> Tensor:
    """Float32 logits of the chunk of rows that begins at `start`: (chunk, vocab)."""
    rows = hidden[start : start + _chunks(hidden).step]
    return (rows @ weight.to(rows.dtype).T).float()


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head; the gradient is made in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        for start in _chunks(hidden):
            log_probs = torch.log_softmax(_logits(hidden, weight, start), dim=-1)
            chunk_labels = labels[start : start + log_probs.size(0), None]
            loss -= log_probs.gather(1, chunk_labels).sum() / divisor
            # d loss / d logits = (softmax - onehot) / divisor
            grad_logits = log_probs.exp_()
            grad_logits.scatter_add_(1, chunk_labels, torch.full_like(chunk_labels, -1, dtype=grad_logits.dtype))
            grad_logits = grad_logits.div_(divisor).to(hidden.dtype)
            rows = slice(start, start + log_probs.size(0))
            torch.mm(grad_logits, weight.to(hidden.dtype), out=grad_hidden[rows])
            if grad_weight.dtype == hidden.dtype:
                grad_weight.addmm_(grad_logits.T, hidden[rows])
            else:
                grad_weight += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


class _TokenLogProbs(torch.autograd.Function):
    """log p(label) of each row; the backward pass makes a chunk's logits again."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pieces = []
        for start in _chunks(hidden):
            log_probs = torch.log_softmax(_logits(hidden, weight, start), dim=-1)
            chunk_labels = labels[start : start + log_probs.size(0)]
            chosen = log_probs.gather(1, chunk_labels[:, None])[:, 0]
            is_top = log_probs.argmax(1) == chunk_labels
            entropy = -(log_probs.exp() * log_probs).sum(1)
            pieces.append((chosen, entropy, is_top))
        empty = (hidden.new_zeros(0), hidden.new_zeros(0), hidden.new_zeros(0, dtype=torch.bool))
        chosen, entropy, is_top = (torch.cat(column) for column in zip(*(pieces or [empty]), strict=True))
        ctx.save_for_backward(hidden, weight, labels)
        ctx.mark_non_differentiable(entropy, is_top)
        return chosen, entropy, is_top

    @staticmethod
    def backward(ctx, grad_log_probs: Tensor, _entropy, _is_top):
        hidden, weight, labels = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        for start in _chunks(hidden):
            # d log p(label) / d logits = onehot - softmax
            probs = torch.softmax(_logits(hidden, weight, start), dim=-1)
            rows = slice(start, start + probs.size(0))
            grad = grad_log_probs[rows, None]
            grad_logits = probs.mul_(-grad).scatter_add_(1, labels[rows, None], grad.to(probs.dtype)).to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ weight.to(hidden.dtype)
            grad_weight += (grad_logits.T @ hidden[rows]).to(weight.dtype)
        return grad_hidden, grad_weight, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T` against labels: their sum divided by `divisor` (default: their count).

    hidden (tokens, width), weight (vocab, width), labels (tokens,), none of them IGNORE; nats, float32.
    """
    divisor = torch.as_tensor(labels.numel() if divisor is None else divisor, device=hidden.device).clamp(min=1)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, labels, divisor)
    return -token_log_probs(hidden, weight, labels)[0].sum() / divisor


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log p(label), entropy, whether the label is the most likely token) of each row, in nats; shapes (tokens,).

    hidden (tokens, width), weight (vocab, width), labels (tokens,). Only the first has a gradient.
    """
    return _TokenLogProbs.apply(hidden, weight, labels)


@dataclass
class TokenScores(ModelOutput):
    """What TRL's trainers read off a model called with `fused_lm_head=True`; each (batch, seq - 1), 0 where IGNORE."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


def use_chunked_head(model: PreTrainedModel) -> None:
    """From now on `model(..., labels=labels)` computes its loss in chunks, at the labelled positions only.

    Called with `fused_lm_head=True` it returns TokenScores, as TRL's own (private) head does, so that the trainers'
    losses stay TRL's. Without labels the model is what it was. The weights, and what is saved, do not change.
    """
    original_forward = type(model).forward.__get__(model)

    @functools.wraps(type(model).forward)
    def forward(*args, labels: Tensor | None = None, fused_lm_head: bool = False, num_items_in_batch=None, **kwargs):
        if labels is None:
            return original_forward(*args, **kwargs)
        kwargs["use_cache"] = False
        hidden = model.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, seq - 1, width)
        targets = labels[:, 1:]
        mask = targets != IGNORE
        weight = model.get_output_embeddings().weight
        if not fused_lm_head:
            return CausalLMOutput(loss=linear_cross_entropy(hidden[mask], weight, targets[mask], num_items_in_batch))
        rows = hidden[mask]
        log_probs, entropy, is_top = token_log_probs(rows, weight, targets[mask])
        mean_logits = (rows.detach() @ weight.detach().mean(0).to(rows.dtype)).float()
        zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        place = functools.partial(zeros.masked_scatter, mask)
        return TokenScores(
            log_probs=place(log_probs),
            entropy=place(entropy),
            mean_logits=place(mean_logits),
            is_top1=place(is_top.float()).bool(),
            label_mask=mask,
        )

    model.forward = forward

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

from med_model.data.prompt import IGNORE

CHUNK_TOKENS = {"cpu": 256}  # measured: benchmarks/README.md
DEFAULT_CHUNK_TOKENS = 4096  # a GPU wants large products; 4096 x 20,000 floats are 330 MB
SOFTMAX_ROWS = {"cpu": 64}  # of a chunk at a time: they stay in the cache; elsewhere the whole chunk
SUM_ROWS = 4096  # of the weight's gradient at a time: 25 MB less at the peak
KEPT_PROBABILITY_BYTES = 512 * 2**20  # up to here they are kept for the backward pass instead of made again
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny  # a loss of 87 nats; its gradient is right beyond that too


def chunk_tokens(hidden: Tensor) -> int:
    return CHUNK_TOKENS.get(hidden.device.type, DEFAULT_CHUNK_TOKENS)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast multiplies in, where it is on. Asked for once: weights are not converted for each chunk."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:  # sums of bfloat16 products stay in float32; a part at a time, since each is copied into float32 first
        for part, rows in zip(total.split(SUM_ROWS), a.split(SUM_ROWS), strict=True):
            part += rows @ b


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head; the gradient is made in the forward pass, while a chunk's logits are at hand.

    One backward pass only: it changes what was saved, and autograd refuses a second.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor) -> Tensor:
        dtype = compute_dtype(hidden)
        rows, table = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight)
        step = chunk_tokens(hidden)
        softmax_rows = SOFTMAX_ROWS.get(hidden.device.type, step)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            logits = rows[part] @ table.T
            for some, targets in zip(logits.split(softmax_rows), labels[part, None].split(softmax_rows), strict=True):
                probs = torch.softmax(some.float(), dim=-1)
                loss -= probs.gather(1, targets).clamp_(min=SMALLEST_PROBABILITY).log_().sum()
                # d loss / d logits = softmax - onehot, in the place of the logits
                probs.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=probs.dtype))
                some.copy_(probs)
            torch.mm(logits, table, out=grad_rows[part])
            _add_product(grad_weight, logits.T, rows[part])
            del logits  # before the next chunk's are made
        ctx.save_for_backward(grad_rows, grad_weight, divisor)
        ctx.hidden_dtype = hidden.dtype
        return loss / divisor

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_rows, grad_weight, divisor = ctx.saved_tensors
        scale = grad_loss / divisor
        return grad_rows.to(ctx.hidden_dtype).mul_(scale), grad_weight.mul_(scale), None, None


class _TokenLogProbs(torch.autograd.Function):
    """log p(label) of each row; the probabilities are kept for the backward pass, or made again where they are many.

    One backward pass only, as above.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = ctx.dtype = compute_dtype(hidden)
        rows, table = hidden.to(dtype), weight.to(dtype)
        chosen, entropy = (torch.empty(len(rows), dtype=torch.float32, device=rows.device) for _ in range(2))
        is_top = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
        keep = any(ctx.needs_input_grad) and len(rows) * len(table) * 4 <= KEPT_PROBABILITY_BYTES
        kept: list[Tensor] = []
        step = chunk_tokens(hidden)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            logits = (rows[part] @ table.T).float()
            targets = labels[part, None]
            probs = torch.softmax(logits, dim=-1)
            top, top_ids = logits.max(dim=1, keepdim=True)
            log_sum = top - probs.gather(1, top_ids).log_()  # the largest probability is never rounded to zero
            chosen[part] = (logits.gather(1, targets) - log_sum)[:, 0]
            entropy[part] = log_sum[:, 0] - torch.linalg.vecdot(probs, logits)
            is_top[part] = (top_ids == targets)[:, 0]
            if keep:
                kept.append(probs)
        ctx.save_for_backward(hidden, weight, labels, *kept)
        ctx.mark_non_differentiable(entropy, is_top)
        return chosen, entropy, is_top

    @staticmethod
    def backward(ctx, grad_log_probs: Tensor, _entropy, _is_top):
        hidden, weight, labels, *kept = ctx.saved_tensors
        rows, table = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight)
        step = chunk_tokens(hidden)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            probs = kept[start // step] if kept else torch.softmax((rows[part] @ table.T).float(), dim=-1)
            # d log p(label) / d logits = onehot - softmax. The gradient from above scales rows of the narrow side.
            probs.scatter_add_(1, labels[part, None], torch.full_like(labels[part, None], -1, dtype=probs.dtype))
            falling = probs.to(table.dtype)
            scale = -grad_log_probs[part, None].to(table.dtype)
            torch.mm(falling, table, out=grad_rows[part])
            grad_rows[part] *= scale
            _add_product(grad_weight, falling.T, rows[part] * scale)
        return grad_rows.to(hidden.dtype), grad_weight, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T` against labels: their sum divided by `divisor` (default: their count).

    hidden (tokens, width), weight (vocab, width), labels (tokens,), none of them IGNORE; nats, float32.
    """
    divisor = torch.as_tensor(labels.numel() if divisor is None else divisor, device=hidden.device).clamp(min=1)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, labels, divisor)
    return -label_log_probs(hidden, weight, labels).sum() / divisor


@torch.no_grad()
def label_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """log p(label) of each row in nats, for scoring: without gradient; shapes as token_log_probs."""
    dtype, step = compute_dtype(hidden), chunk_tokens(hidden)
    table = weight.to(dtype)
    log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        logits = (hidden[part].to(dtype) @ table.T).float()
        log_probs[part] = logits.gather(1, labels[part, None])[:, 0] - logits.logsumexp(1)
    return log_probs


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log p(label), entropy, whether the label is the most likely token) of each row, in nats; shapes (tokens,).

    hidden (tokens, width), weight (vocab, width), labels (tokens,). Only the first has a gradient.
    """
    return _TokenLogProbs.apply(hidden, weight, labels)


class _LinearKL(torch.autograd.Function):
    """Mean KL(teacher || model) of two linear heads; the gradient is made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
        dtype, step, count = compute_dtype(hidden), chunk_tokens(hidden), len(hidden)
        rows, table = hidden.to(dtype), weight.to(dtype)
        teacher_rows, teacher_table = teacher_hidden.to(dtype), teacher_weight.to(dtype)
        divergence = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_rows, grad_weight = torch.empty_like(rows), torch.zeros_like(weight)
        for start in range(0, count, step):
            part = slice(start, start + step)
            log_probs = (rows[part] @ table.T).float().log_softmax(-1)  # (chunk, vocab)
            teacher_log_probs = (teacher_rows[part] @ teacher_table.T).float().log_softmax(-1)
            teacher_probs = teacher_log_probs.exp()
            divergence += torch.linalg.vecdot(teacher_probs, teacher_log_probs.sub_(log_probs)).sum()
            # d KL / d logits = softmax - teacher's softmax
            pull = log_probs.exp_().sub_(teacher_probs).div_(count).to(dtype)
            torch.mm(pull, table, out=grad_rows[part])
            grad_weight += pull.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_weight)
        ctx.hidden_dtype = hidden.dtype
        return divergence / count

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_rows, grad_weight = ctx.saved_tensors
        return grad_rows.to(ctx.hidden_dtype) * grad, grad_weight * grad, None, None


def linear_kl(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || model) in nats, between `hidden @ weight.T` and the teacher's.

    hidden, teacher_hidden (tokens, width), weight, teacher_weight (vocab, width). The teacher has no gradient.
    """
    return _LinearKL.apply(hidden, weight, teacher_hidden.detach(), teacher_weight.detach())


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

    Batches are padded on the right, where causal attention never looks: the mask is checked and then left out.
    """
    original_forward = type(model).forward.__get__(model)

    @functools.wraps(type(model).forward)
    def forward(
        *args,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        fused_lm_head: bool = False,
        num_items_in_batch=None,
        **kwargs,
    ):
        if labels is None:
            return original_forward(*args, attention_mask=attention_mask, **kwargs)
        if attention_mask is not None:
            padded_right = attention_mask[:, 0].all() and (attention_mask[:, 1:] <= attention_mask[:, :-1]).all()
            assert padded_right, "rows must be padded on the right"
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

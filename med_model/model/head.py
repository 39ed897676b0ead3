"""Compute the output layer and its losses in chunks of tokens. Only the logits of one chunk are in memory.

Three fifths of the arithmetic of this small model are in the output layer. All logits of 4 x 512 tokens over a
vocabulary of 20,000 would take 164 MB in float32. The loss reads the logits several times. Reading 164 MB so often
would take longer than the arithmetic. On a CPU, the logits of one chunk stay in the processor's cache.
"""

import torch
from torch import Tensor

# Tokens per chunk on a CPU. In bfloat16, chunks of 128 tokens are 15% slower. Chunks of 512 tokens are 2% faster, but
# take 30 MB more memory.
CHUNK_TOKENS = {"cpu": 256}
# Tokens per chunk on other devices. A GPU is fast only with large matrix products. With a vocabulary of 20,000, the
# logits of one chunk take 330 MB.
DEFAULT_CHUNK_TOKENS = 4096
# Tokens per softmax on a CPU: their logits fit into the cache. On other devices, one softmax takes the whole chunk.
SOFTMAX_ROWS = {"cpu": 64}
SUM_ROWS = 4096  # rows of the weight gradient per addition; adding all rows at once would take 25 MB more memory
# Largest memory in bytes for the probabilities that the forward pass keeps for the backward pass. If they need more,
# none are kept, and the backward pass computes them again.
KEPT_PROBABILITY_BYTES = 512 * 2**20
# The loss uses this value instead of a smaller probability, because the logarithm of 0 is infinite. So the loss is at
# most about 87 nats per token. The gradients are not affected.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def chunk_tokens(hidden: Tensor) -> int:
    """Return the number of tokens per chunk on the device of `hidden`."""
    return CHUNK_TOKENS.get(hidden.device.type, DEFAULT_CHUNK_TOKENS)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of autocast if autocast is on, else the dtype of `hidden`.

    Callers convert the weights to this dtype once, not once per chunk.
    """
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:  # the product has another dtype, such as bfloat16: it is added in small parts, which need less memory
        for part, rows in zip(total.split(SUM_ROWS), a.split(SUM_ROWS), strict=True):
            part += rows @ b


class _LinearCrossEntropy(torch.autograd.Function):
    """Compute the cross-entropy of a linear output layer. Its `forward` also computes the gradient, chunk by chunk.

    Only one backward pass is possible, because `backward` changes the saved gradients in place.
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
            for tile, targets in zip(logits.split(softmax_rows), labels[part, None].split(softmax_rows), strict=True):
                probs = torch.softmax(tile.float(), dim=-1)
                loss -= probs.gather(1, targets).clamp_(min=SMALLEST_PROBABILITY).log_().sum()
                # d loss / d logits = (softmax - onehot) / divisor. `backward` divides. The result overwrites `logits`.
                probs.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=probs.dtype))
                tile.copy_(probs)
            torch.mm(logits, table, out=grad_rows[part])
            _add_product(grad_weight, logits.T, rows[part])
            del logits  # frees the memory before the next chunk is allocated
        ctx.save_for_backward(grad_rows, grad_weight, divisor)
        ctx.hidden_dtype = hidden.dtype
        return loss / divisor

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_rows, grad_weight, divisor = ctx.saved_tensors
        scale = grad_loss / divisor
        return grad_rows.to(ctx.hidden_dtype).mul_(scale), grad_weight.mul_(scale), None, None


class _TokenLogProbs(torch.autograd.Function):
    """Compute log p(label) and the entropy of each token, and whether its label is most likely.

    `forward` keeps the probabilities for `backward` if they take at most KEPT_PROBABILITY_BYTES.
    Then only one backward pass is possible, because `backward` changes these probabilities in place.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = ctx.dtype = compute_dtype(hidden)
        rows, table = hidden.to(dtype), weight.to(dtype)
        log_probs, entropy = (torch.empty(len(rows), dtype=torch.float32, device=rows.device) for _ in range(2))
        is_top = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
        keeps_probs = any(ctx.needs_input_grad) and len(rows) * len(table) * 4 <= KEPT_PROBABILITY_BYTES
        kept_probs: list[Tensor] = []
        step = chunk_tokens(hidden)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            logits = (rows[part] @ table.T).float()
            targets = labels[part, None]
            probs = torch.softmax(logits, dim=-1)
            top, top_ids = logits.max(dim=1, keepdim=True)
            # `log_sum` is logsumexp of the logits. The top token gives it: its probability never rounds to zero.
            log_sum = top - probs.gather(1, top_ids).log_()
            log_probs[part] = (logits.gather(1, targets) - log_sum)[:, 0]
            entropy[part] = log_sum[:, 0] - torch.linalg.vecdot(probs, logits)
            is_top[part] = (top_ids == targets)[:, 0]
            if keeps_probs:
                kept_probs.append(probs)
        ctx.save_for_backward(hidden, weight, labels, *kept_probs)
        ctx.mark_non_differentiable(entropy, is_top)
        return log_probs, entropy, is_top

    @staticmethod
    def backward(ctx, grad_log_probs: Tensor, _entropy, _is_top):
        hidden, weight, labels, *kept_probs = ctx.saved_tensors
        rows, table = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight)
        step = chunk_tokens(hidden)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            probs = kept_probs[start // step] if kept_probs else torch.softmax((rows[part] @ table.T).float(), dim=-1)
            # d log p(label) / d logits = onehot - softmax. Two minus signs cancel: one in `probs`, one in `scale`.
            # `scale` is multiplied with tensors of (chunk, width), because tensors of (chunk, vocab) are larger.
            probs.scatter_add_(1, labels[part, None], torch.full_like(labels[part, None], -1, dtype=probs.dtype))
            minus_grad_logits = probs.to(table.dtype)
            scale = -grad_log_probs[part, None].to(table.dtype)
            torch.mm(minus_grad_logits, table, out=grad_rows[part])
            grad_rows[part] *= scale
            _add_product(grad_weight, minus_grad_logits.T, rows[part] * scale)
        return grad_rows.to(hidden.dtype), grad_weight, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor | int | None = None
) -> Tensor:
    """Return the cross-entropy of `hidden @ weight.T` against `labels`, in nats, as a float32 scalar.

    The cross-entropy is summed over the tokens and divided by `divisor` (default: the number of tokens). A divisor
    below 1 counts as 1.
    hidden: (tokens, width), weight: (vocab, width), labels: (tokens,). No label may be IGNORE (-100).
    """
    divisor = torch.as_tensor(labels.numel() if divisor is None else divisor, device=hidden.device).clamp(min=1)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, labels, divisor)
    return -label_log_probs(hidden, weight, labels).sum() / divisor


@torch.no_grad()
def label_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return log p(label) of each token in nats, a tensor of shape (tokens,) without gradient.

    hidden: (tokens, width), weight: (vocab, width), labels: (tokens,).
    """
    dtype, step = compute_dtype(hidden), chunk_tokens(hidden)
    table = weight.to(dtype)
    log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        logits = (hidden[part].to(dtype) @ table.T).float()
        log_probs[part] = logits.gather(1, labels[part, None])[:, 0] - logits.logsumexp(1)
    return log_probs


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(label) and the entropy of each token in nats, and True where the label is the most likely token.

    These are three tensors of shape (tokens,). Only log p(label) has a gradient.
    hidden: (tokens, width), weight: (vocab, width), labels: (tokens,).
    """
    return _TokenLogProbs.apply(hidden, weight, labels)


class _LinearKL(torch.autograd.Function):
    """Compute the mean KL(teacher || model) of two linear output layers. Its `forward` also computes the gradient."""

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
            # d KL / d logits = softmax of the model - softmax of the teacher
            grad_logits = log_probs.exp_().sub_(teacher_probs).div_(count).to(dtype)
            torch.mm(grad_logits, table, out=grad_rows[part])
            grad_weight += grad_logits.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_weight)
        ctx.hidden_dtype = hidden.dtype
        return divergence / count

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_rows, grad_weight = ctx.saved_tensors
        return grad_rows.to(ctx.hidden_dtype) * grad, grad_weight * grad, None, None


def linear_kl(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    """Return the mean over tokens of KL(teacher || model) in nats, as a float32 scalar.

    The model's logits are `hidden @ weight.T`. The teacher's logits are `teacher_hidden @ teacher_weight.T`.
    No gradient flows to the teacher.
    hidden and teacher_hidden: (tokens, width). weight and teacher_weight: (vocab, width).
    """
    return _LinearKL.apply(hidden, weight, teacher_hidden.detach(), teacher_weight.detach())

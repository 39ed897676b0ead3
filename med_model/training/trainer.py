"""Add our output layer to the Trainers of all stages, and the KL regularization to those of the matching, SFT and DPO.

Our output layer (model/head.py) keeps only the logits of one chunk of tokens in memory. In SFT and DPO, TRL computes
the loss from the log-probabilities of this layer. The KL regularization (retention.py) keeps the predictions on plain
text close to those of an earlier model. A PassTrainer reads its rows in another form in each pass (pass_views.py).
"""

import contextlib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from med_model.data.prompt import IGNORE
from med_model.model.head import linear_cross_entropy, token_log_probs
from med_model.training.pass_views import PassCounter, PassViews
from med_model.training.retention import RETENTION_STEPS, Retention
from med_model.training.similar_lengths import SimilarLengths


@dataclass
class TokenScores(ModelOutput):
    """The model's output for TRL's trainers, which call the model with `fused_lm_head=True`.

    Each tensor has the shape (batch, seq - 1). At positions without loss (label IGNORE), each value is 0 or False.
    log_probs: log p(label) in nats. entropy: the entropy of the prediction in nats. mean_logits: the mean of the
    logits over the vocabulary. is_top1: True if the label is the most likely token. label_mask: True if the label is
    not IGNORE. loss: None, because TRL computes the loss.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


@contextlib.contextmanager
def _feed_forward_only_at(positions: Tensor, network: torch.nn.Module) -> Iterator[None]:
    """Let a layer's feed-forward network compute only at `positions` (batch, seq), and give 0 elsewhere."""

    def forward(hidden: Tensor) -> Tensor:
        computed = type(network).forward(network, hidden[positions])
        return computed.new_zeros(hidden.shape).masked_scatter(positions[..., None], computed)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def _forward_with_chunked_head(
    self: PreTrainedModel,
    *args,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    fused_lm_head: bool = False,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs,
) -> ModelOutput:
    """Return a model output with the loss. Logits are computed in chunks of tokens, and only where there is a label.
    So is the feed-forward network of the last layer, because no other token reads its output.

    With `fused_lm_head=True`, return `TokenScores` instead: TRL computes the loss from them. Without `labels`, return
    the output of the model's own `forward`. With `labels`, rows must be padded on the right. Causal attention never
    looks to the right, so no token sees the padding, and `attention_mask` is not passed on.
    """
    if labels is None:
        return type(self).forward(self, *args, attention_mask=attention_mask, **kwargs)
    if attention_mask is not None:
        padded_right = attention_mask[:, 0].all() and (attention_mask[:, 1:] <= attention_mask[:, :-1]).all()
        assert padded_right, "rows must be padded on the right"
    kwargs["use_cache"] = False
    targets = labels[:, 1:]
    mask = targets != IGNORE  # (batch, seq - 1)
    # Activation checkpointing computes a layer again in the backward pass, when the context below has ended.
    if self.is_activation_checkpointing:
        only_labels = contextlib.nullcontext()
    else:
        only_labels = _feed_forward_only_at(torch.nn.functional.pad(mask, (0, 1)), self.base_model.h[-1].mlp)
    with only_labels:
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, seq - 1, width)
    rows, weight = hidden[mask], self.get_output_embeddings().weight  # (labelled tokens, width), (vocab, width)
    if not fused_lm_head:
        return CausalLMOutput(loss=linear_cross_entropy(rows, weight, targets[mask], num_items_in_batch))
    log_probs, entropy, is_top = token_log_probs(rows, weight, targets[mask])
    mean_logits = (rows.detach() @ weight.detach().mean(0).to(rows.dtype)).float()
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    scatter = functools.partial(zeros.masked_scatter, mask)
    return TokenScores(
        log_probs=scatter(log_probs),
        entropy=scatter(entropy),
        mean_logits=scatter(mean_logits),
        is_top1=scatter(is_top.float()).bool(),
        label_mask=mask,
    )


def use_chunked_head(model: PreTrainedModel) -> None:
    """Replace the model's `forward` by one that computes logits in chunks. Weights and saved files do not change.

    The replacement is a bound method, so that a deep copy of the model computes with the copy's weights.
    """

    @functools.wraps(type(model).forward)  # keeps the signature: the Trainer reads the names of the inputs from it
    def forward(self: PreTrainedModel, *args, **kwargs) -> ModelOutput:
        return _forward_with_chunked_head(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


class RetentionTrainer:
    """A mixin for a Trainer. It adds the KL regularization to the loss.

    retention: the KL regularization, or None to train without KL regularization.
    """

    def __init__(self, *args, retention: Retention | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.retention = retention

    def retention_loss(self) -> Tensor:
        """Return the KL term of the loss: a scalar with gradient."""
        return self.retention.loss(self.model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # An evaluation may return a tuple (loss, outputs). In training `loss` is a tensor, and the KL term is added.
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.retention and model.training and self.state.global_step % RETENTION_STEPS == 0:
            # A step adds up the gradients of its batches, so each KL term must be divided by the number of batches.
            # If num_items_in_batch is None, the Trainer makes this division later.
            batches = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            loss = loss + RETENTION_STEPS * self.retention_loss() / batches
        return loss


class OurTrainer(RetentionTrainer):
    """A mixin for a Trainer. It adds our output layer, which works in chunks of tokens, and the KL regularization.

    The `__init__` of TRL's trainers installs another, slower output layer. So ours is installed after it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_chunked_head(self.model)


class PassTrainer:
    """A mixin for a Trainer. It reads views of the training data that differ from pass to pass.

    With --train_sampling_strategy group_by_length, views of similar length share a batch.
    """

    def __init__(self, views: PassViews, **kwargs):
        self.views = views
        super().__init__(train_dataset=views.dataset(), **kwargs)
        self.add_callback(PassCounter(views))

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return SimilarLengths(self.views, self.args.train_batch_size * self.args.gradient_accumulation_steps)

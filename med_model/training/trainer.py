"""The one seam into the libraries: what every trainer of the project adds to the Trainer that it extends.

The losses of SFT and DPO stay TRL's. Two things are ours: the output layer (model/head.py), which never holds the full
logits, and the KL regularization towards an earlier model on plain text (retention.py).
"""

import functools
import types
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from med_model.data.prompt import IGNORE
from med_model.model.head import linear_cross_entropy, token_log_probs
from med_model.training.retention import Retention


@dataclass
class TokenScores(ModelOutput):
    """The fields that TRL's trainers read after a call with `fused_lm_head=True`; (batch, seq - 1), 0 at IGNORE."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


def _forward_with_chunked_head(
    self: PreTrainedModel,
    *args,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    fused_lm_head: bool = False,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs,
) -> ModelOutput:
    """`forward` of the model, with the loss computed in chunks and at the labelled positions only.

    Called with `fused_lm_head=True` it returns TokenScores, as TRL's own (private) head does. Without labels it is the
    model's own forward. Rows must be padded on the right: causal attention never looks there, so no mask is needed.
    """
    if labels is None:
        return type(self).forward(self, *args, attention_mask=attention_mask, **kwargs)
    if attention_mask is not None:
        padded_right = attention_mask[:, 0].all() and (attention_mask[:, 1:] <= attention_mask[:, :-1]).all()
        assert padded_right, "rows must be padded on the right"
    kwargs["use_cache"] = False
    hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, seq - 1, width)
    targets = labels[:, 1:]
    mask = targets != IGNORE
    rows, weight = hidden[mask], self.get_output_embeddings().weight  # (labelled, width), (vocab, width)
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
    """Replace the model's `forward` by `_forward_with_chunked_head`. Weights and saved files do not change.

    The replacement is a bound method, so that a deep copy of the model computes with the copy's weights.
    """
    model.forward = types.MethodType(functools.wraps(type(model).forward)(_forward_with_chunked_head), model)


class OurTrainer:
    """Mixed into a Trainer: chunked head and retention, for all three stages.

    The head is installed after the Trainer's own __init__, because TRL installs a slower one there.
    """

    def __init__(self, *args, retention: Retention | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        use_chunked_head(self.model)
        self.retention = retention

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # With return_outputs TRL would run the model a second time; training never asks for them.
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.retention and model.training:
            # If the Trainer counts the labels of a whole step, it does not divide by the number of batches; we do.
            batches = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            loss = loss + self.retention.loss(self.model) / batches
        return loss

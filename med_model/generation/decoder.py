"""GPT-2 straight over its weights, for generating: the numbers of the transformers model in a fraction of the calls.

At 8.4 million parameters one core needs 0.9 ms of arithmetic for a token. The transformers model takes 2.1 ms with its
Python, its masks and a cache that is copied to grow; this one 1.1 ms, with a cache laid out once and a layer that is a
dozen calls of torch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2LMHeadModel, PreTrainedModel

from med_model.errors import UserError

PREFILL_TOKENS = 4096  # read at once at most: more is no faster, and the MLP holds 4 widths of floats for each
# From this many rows on the output matrix is laid out anew as (width, vocab). At a vocabulary of 7,377 that took
# 8 rows from 0.80 to 0.32 ms and 64 from 1.54 to 1.23; one or two rows gain nothing from it.
ROWS_FOR_OWN_HEAD = 4
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")  # one function; transformers computes gelu_new in eight calls


def require_gpt2(model: PreTrainedModel) -> None:
    """UserError for a model that is not a GPT-2."""
    if not isinstance(model, GPT2LMHeadModel):
        raise UserError(
            f"只支持 GPT-2/only GPT-2 models can be used here, this one is of model_type {model.config.model_type}: "
            "give the directory of a model that these scripts trained"
        )


class Layer(NamedTuple):
    """One block's weights; norms are (weight, bias), the others (bias, weight (in, out)) as addmm takes them."""

    norm_1: tuple[Tensor, Tensor]
    query_key_value: tuple[Tensor, Tensor]
    scale: float
    attention_out: tuple[Tensor, Tensor]
    norm_2: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class Decoder:
    """Reads `batch` prompts, then one token a row and step, with room for `capacity` columns of keys and values.

    Prompts start at column 0, and all rows share the columns behind the longest one, so that a step writes one slice.
    The gap behind a shorter prompt is masked: attention does not care about the order of what it sees. The weights are
    those of the model at this moment: make a new decoder after training further. For use under torch.inference_mode.
    """

    def __init__(self, model: GPT2LMHeadModel, batch: int, capacity: int):
        config, transformer = model.config, model.transformer
        self.rows, self.heads, self.epsilon = batch, config.n_head, config.layer_norm_epsilon
        self.wte, self.wpe = transformer.wte.weight, transformer.wpe.weight
        self.layers = [
            Layer(
                norm_1=(block.ln_1.weight, block.ln_1.bias),
                query_key_value=(block.attn.c_attn.bias, block.attn.c_attn.weight),
                scale=block.attn.scaling,
                attention_out=(block.attn.c_proj.bias, block.attn.c_proj.weight),
                norm_2=(block.ln_2.weight, block.ln_2.bias),
                up=(block.mlp.c_fc.bias, block.mlp.c_fc.weight),
                down=(block.mlp.c_proj.bias, block.mlp.c_proj.weight),
            )
            for block in transformer.h
        ]
        self.norm = (transformer.ln_f.weight, transformer.ln_f.bias)
        self.activation = None if config.activation_function in TANH_GELUS else transformer.h[0].mlp.act
        head = model.lm_head.weight.t()  # (width, vocab)
        self.head = head.contiguous() if batch >= ROWS_FOR_OWN_HEAD else head
        shape = (2, batch, config.n_head, capacity, config.n_embd // config.n_head)  # keys and values
        self.caches = [self.wte.new_empty(shape) for _ in self.layers]
        self.capacity, self.columns = capacity, 0  # columns in use

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Reads the prompts, one a row, none empty; gives the logits of what follows on each, (batch, vocab)."""
        lengths = [len(prompt) for prompt in prompts]
        device, self.columns = self.wte.device, max(lengths)
        self.positions = torch.tensor(lengths, device=device)  # of each row's next token
        self.mask = None  # added to the attention scores, (batch, 1, 1, capacity): -inf in the gaps
        if min(lengths) < self.columns:
            column = torch.arange(self.capacity, device=device)
            gaps = (column >= self.positions[:, None]) & (column < self.columns)
            self.mask = self.wte.new_zeros(gaps.shape).masked_fill(gaps, -torch.inf)[:, None, None]
        size = max(1, PREFILL_TOKENS // self.columns)
        return torch.cat([self._read(prompts[i : i + size], i) for i in range(0, len(prompts), size)])

    def _read(self, prompts: list[list[int]], first: int) -> Tensor:
        """Prompts into the rows from `first` on; filled up on the right, where causal attention never looks."""
        rows = slice(first, first + len(prompts))
        ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(self.wte.device)
        tokens = ids.shape[1]
        for cache in self.caches:  # masked, but a NaN left there from other use of the memory would shine through
            cache[:, rows, :, tokens : self.columns] = 0
        hidden = F.embedding(ids, self.wte) + self.wpe[:tokens]
        hidden = self._blocks(hidden.flatten(0, 1), rows, 0, tokens).view(*ids.shape, -1)
        row = torch.arange(len(prompts), device=ids.device)
        return self._logits(hidden[row, self.positions[rows] - 1])

    def step(self, ids: Tensor) -> Tensor:
        """Takes the next token of each row, (rows,); gives the logits of what follows on it, (rows, vocab)."""
        assert self.columns < self.capacity
        hidden = F.embedding(ids, self.wte) + F.embedding(self.positions, self.wpe)
        hidden = self._blocks(hidden, slice(0, self.rows), self.columns, self.columns + 1)
        self.positions += 1
        self.columns += 1
        return self._logits(hidden)

    def keep(self, kept: list[int]) -> list[int]:
        """Drops all rows but these; gives for each row there is now the row it was.

        The last rows kept move into the places of those dropped: little is copied, and no second cache is needed.
        """
        staying = set(kept)
        moving = iter(sorted((row for row in kept if row >= len(kept)), reverse=True))
        order = [row if row in staying else next(moving) for row in range(len(kept))]
        places = [place for place, row in enumerate(order) if place != row]
        sources = [order[place] for place in places]
        if places:
            for cache in self.caches:
                cache[:, places, :, : self.columns] = cache[:, sources, :, : self.columns]
        self.rows, self.positions = len(order), self.positions[order]
        self.mask = None if self.mask is None else self.mask[order]
        return order

    def _blocks(self, hidden: Tensor, rows: slice, start: int, end: int) -> Tensor:
        """All layers over the tokens of columns `start` to `end` of some rows, (rows * tokens, width), in place."""
        width = hidden.shape[1]
        split = (rows.stop - rows.start, end - start, 3, self.heads, width // self.heads)
        mask = None if start == 0 or self.mask is None else self.mask[rows, :, :, :end]
        for layer, cache in zip(self.layers, self.caches, strict=True):
            normed = F.layer_norm(hidden, (width,), *layer.norm_1, self.epsilon)
            # 3 of (rows, heads, tokens, width of a head)
            heads = torch.addmm(layer.query_key_value[0], normed, layer.query_key_value[1]).view(split)
            heads = heads.permute(2, 0, 3, 1, 4)
            cache[:, rows, :, start:end] = heads[1:]
            keys, values = cache[:, rows, :, :end]
            attended = F.scaled_dot_product_attention(
                heads[0], keys, values, attn_mask=mask, is_causal=start == 0, scale=layer.scale
            )
            bias, weight = layer.attention_out
            hidden.addmm_(attended.transpose(1, 2).reshape(-1, width), weight).add_(bias)
            normed = F.layer_norm(hidden, (width,), *layer.norm_2, self.epsilon)
            inner = torch.addmm(layer.up[0], normed, layer.up[1])
            inner = self.activation(inner) if self.activation else F.gelu(inner, approximate="tanh")
            hidden.addmm_(inner, layer.down[1]).add_(layer.down[0])
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], *self.norm, self.epsilon) @ self.head

"""Join documents end to end and cut them into blocks of equal length, for pre-training and KL regularization."""

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from med_model.data.prompt import END_OF_TEXT, encode_text

BLOCK_TOKENS = 512  # tokens per block, and number of positions of the model
ENCODE_BATCH = 1000  # documents per call of the tokenizer: enough for all of its threads


class PackedBlocks(Dataset):
    """Join documents end to end, and hold the tokens as full blocks without padding.

    `<|endoftext|>` is before the first document and after each document. The last block may overlap the one before it,
    so that no token is lost. If there are fewer than `block_tokens` tokens in all, there is one shorter block.
    An item has `input_ids` and `labels`, two equal int64 tensors of shape (self.length,).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], block_tokens: int = BLOCK_TOKENS):
        end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        parts = [np.array([end], dtype)]
        for start in range(0, len(texts), ENCODE_BATCH):
            parts += [
                np.array([*ids, end], dtype) for ids in encode_text(tokenizer, texts[start : start + ENCODE_BATCH])
            ]
        self.tokens = np.concatenate(parts)
        self.length = min(block_tokens, len(self.tokens))  # all texts together may be shorter than a block
        last = len(self.tokens) - self.length
        self.starts = [*range(0, last, self.length), last]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self.tokens[self.starts[i] : self.starts[i] + self.length].astype(np.int64))
        return {"input_ids": block, "labels": block}

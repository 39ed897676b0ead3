import torch

from med_model.data.blocks import PackedBlocks
from med_model.data.prompt import END_OF_TEXT, encode_text

TEXTS = ["高血压患者要少盐少油。", "发作时请拨打120。", "按时复查，把结果记下来。"]


def joined(tokenizer, texts: list[str]) -> list[int]:
    """Join the input_ids of all texts in one list. <|endoftext|> stands before the first text and after each text."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return [end] + [token for ids in encode_text(tokenizer, texts) for token in (*ids, end)]


def test_blocks_are_full_and_the_last_one_overlaps_the_one_before(tokenizer):
    ids = joined(tokenizer, TEXTS)
    length = len(ids) // 2 - 1  # 2 or 3 tokens are left after two full blocks
    blocks = PackedBlocks(tokenizer, TEXTS, length)
    expected = [ids[:length], ids[length : 2 * length], ids[-length:]]
    assert [block["input_ids"].tolist() for block in blocks] == expected
    assert 2 * length < len(ids) < 3 * length


def test_blocks_that_divide_the_tokens_evenly_do_not_overlap(tokenizer):
    ids = joined(tokenizer, TEXTS * 4)
    length = next(number for number in range(2, len(ids)) if len(ids) % number == 0)
    blocks = PackedBlocks(tokenizer, TEXTS * 4, length)
    assert torch.cat([block["input_ids"] for block in blocks]).tolist() == ids


def test_a_block_has_equal_input_ids_and_labels_of_64_bits(tokenizer):
    block = PackedBlocks(tokenizer, TEXTS, 8)[0]
    assert block["input_ids"].dtype == torch.int64 and torch.equal(block["input_ids"], block["labels"])


def test_texts_shorter_than_a_block_make_one_shorter_block(tokenizer):
    [block] = PackedBlocks(tokenizer, TEXTS[:1], 512)
    assert block["input_ids"].tolist() == joined(tokenizer, TEXTS[:1])


def test_a_special_token_spelled_in_a_document_stays_text(tokenizer):
    blocks = PackedBlocks(tokenizer, [f"少盐{END_OF_TEXT}少油"], 512)
    assert blocks.tokens.tolist().count(tokenizer.convert_tokens_to_ids(END_OF_TEXT)) == 2

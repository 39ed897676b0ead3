import torch
from transformers import AutoTokenizer

from med_model import paths
from med_model.data.blocks import PackedBlocks
from med_model.model.gpt2 import new_model, print_parts, start_at_token_frequencies


def test_new_model_has_8_410_624_parameters_at_20_000_tokens(tokenizer_directory):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.add_tokens([f"词{number}" for number in range(20_000 - len(tokenizer))])
    assert len(tokenizer) == 20_000
    model = new_model(tokenizer, dropout=0.0)
    assert model.num_parameters() == 8_410_624
    assert model.lm_head.weight is model.transformer.wte.weight


def test_start_at_token_frequencies_predicts_each_token_at_its_frequency_in_the_text(tokenizer):
    blocks = PackedBlocks(tokenizer, [paths.HELDOUT_TEXT.read_text(encoding="utf-8")[:30_000]])
    torch.manual_seed(0)
    model = new_model(tokenizer, dropout=0.0).eval()
    start_at_token_frequencies(model, blocks.tokens)
    counts = torch.bincount(torch.from_numpy(blocks.tokens.astype("int64")), minlength=len(tokenizer)) + 1
    expected = (counts / counts.sum()).log()
    with torch.no_grad():
        predicted = model(input_ids=blocks[0]["input_ids"][None]).logits.log_softmax(-1)[0]  # (seq, vocab)
    assert expected.std() > 0.5, "the frequencies must differ, or the test proves nothing"
    # The random weights add noise to the logits. The limit 0.32 is the standard deviation of this noise: the norm of
    # the final hidden state (16) times the standard deviation of the weights (0.02).
    assert (predicted - expected).abs().mean() < 0.32
    assert torch.corrcoef(torch.stack([predicted.mean(0), expected]))[0, 1] > 0.95


def test_print_parts_adds_up_to_all_parameters_of_a_smaller_vocabulary(tokenizer, capsys):
    model = new_model(tokenizer, dropout=0.0)
    print_parts(model)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "Parameters of the model:"
    *parts, total = [int(line.split()[0].replace(",", "")) for line in lines]
    assert len(parts) == 5
    assert sum(parts) == total == 8_410_624 - 256 * (20_000 - len(tokenizer))

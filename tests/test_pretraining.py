"""pre_training/py/run_pretraining.py: its blocks, its model, and that the engine trains as the plain one does."""

import pytest
import torch
from conftest import load_script
from transformers import AutoTokenizer, Trainer, set_seed

from med_model import paths
from med_model.data.blocks import PackedBlocks
from med_model.model.head import use_chunked_head
from med_model.training.muon import optimizers_for


@pytest.fixture(scope="module")
def run_pretraining():
    return load_script("pre_training/py/run_pretraining.py")


def test_the_projects_gpt2_has_8_410_624_parameters_at_20_000_tokens(run_pretraining, tokenizer_directory):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.add_tokens([f"词{number}" for number in range(20_000 - len(tokenizer))])
    assert len(tokenizer) == 20_000
    model = run_pretraining.new_model(tokenizer, dropout=0.0)
    assert model.num_parameters() == 8_410_624
    assert model.lm_head.weight is model.transformer.wte.weight


def test_an_untrained_model_predicts_every_token_as_often_as_it_stands_in_the_text(run_pretraining, tokenizer):
    blocks = PackedBlocks(tokenizer, [paths.HELDOUT_TEXT.read_text(encoding="utf-8")[:30_000]])
    torch.manual_seed(0)
    model = run_pretraining.new_model(tokenizer, dropout=0.0).eval()
    run_pretraining.start_at_token_frequencies(model, blocks.tokens)
    counts = torch.bincount(torch.from_numpy(blocks.tokens.astype("int64")), minlength=len(tokenizer)) + 1
    expected = (counts / counts.sum()).log()
    with torch.no_grad():
        predicted = model(input_ids=blocks[0]["input_ids"][None]).logits.log_softmax(-1)[0]  # (seq, vocab)
    assert expected.std() > 0.5, "a text in which all tokens are alike would show nothing"
    # What is left of the random weights: a logit of 16 x 0.02, the norm of the last layer's output by an embedding's.
    assert (predicted - expected).abs().mean() < 0.32
    assert torch.corrcoef(torch.stack([predicted.mean(0), expected]))[0, 1] > 0.95


def test_the_table_of_parts_adds_up_to_all_parameters_of_a_smaller_vocabulary(run_pretraining, tokenizer, capsys):
    model = run_pretraining.new_model(tokenizer, dropout=0.0)
    run_pretraining.print_parts(model)
    *parts, total = [int(line.split()[0].replace(",", "")) for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(parts) == total == 8_410_624 - 256 * (20_000 - len(tokenizer))


@pytest.mark.parametrize("muon", [True, False])
def test_the_loss_curve_is_that_of_the_plain_loss(run_pretraining, tokenizer, tmp_path, muon):
    texts = [paths.HELDOUT_TEXT.read_text(encoding="utf-8")[:30_000]]
    blocks = PackedBlocks(tokenizer, texts)
    curves = []
    for chunked in (True, False):
        options = {"max_steps": 12, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "bf16": False}
        training = run_pretraining.PretrainingArguments(output_dir=str(tmp_path), muon=muon, **options)
        set_seed(training.seed)
        model = run_pretraining.new_model(tokenizer, dropout=0.0)
        if chunked:
            use_chunked_head(model)
        trainer = Trainer(model, training, train_dataset=blocks, optimizers=optimizers_for(model, training))
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    ours, plain = curves
    assert len(ours) == 12 and ours[-1] < ours[0] - 0.5, "a run that learns nothing would show nothing"
    assert ours == pytest.approx(plain, abs=1e-3)

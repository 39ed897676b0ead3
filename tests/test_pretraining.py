"""Check pre_training/py/run_pretraining.py: the losses of the trainer, and the printed size of the data."""

import pytest
from transformers import Trainer, set_seed

import run_pretraining
from med_model import paths
from med_model.data.blocks import PackedBlocks
from med_model.model.gpt2 import new_model
from med_model.training.muon import optimizers_for


@pytest.mark.long
@pytest.mark.parametrize("muon", [True, False])
def test_pretraining_trainer_has_the_loss_curve_of_the_stock_trainer(tokenizer, tmp_path, muon):
    blocks = PackedBlocks(tokenizer, [paths.HELDOUT_TEXT.read_text(encoding="utf-8")[:30_000]], block_tokens=128)
    curves = []
    for trainer_class in (run_pretraining.PretrainingTrainer, Trainer):
        options = {"max_steps": 12, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "bf16": False}
        training = run_pretraining.PretrainingArguments(output_dir=str(tmp_path), muon=muon, **options)
        set_seed(training.seed)
        model = new_model(tokenizer, dropout=0.0)
        trainer = trainer_class(model, training, train_dataset=blocks, optimizers=optimizers_for(model, training))
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    ours, stock = curves
    assert len(ours) == 12 and ours[-1] < ours[0] - 0.5, "the losses must fall, or the test proves nothing"
    assert ours == pytest.approx(stock, abs=1e-3)


def test_say_size_prints_documents_tokens_and_blocks(tokenizer, capsys):
    texts = ["高血压患者要少盐少油。" * 300, "湿疹患者按时复查。"]
    blocks = PackedBlocks(tokenizer, texts)
    run_pretraining.say_size("Training data", texts, blocks)
    wanted = f"Training data: 2 documents, {len(blocks.tokens):,} tokens, {len(blocks)} blocks of 512.\n"
    assert capsys.readouterr().out == wanted and len(blocks) > 1

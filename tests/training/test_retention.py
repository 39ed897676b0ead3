"""Check training/retention.py: KL regularization towards an earlier model, and weight averaging."""

import copy

import pytest
import torch
from transformers import GPT2LMHeadModel

from med_model.data.blocks import PackedBlocks
from med_model.errors import UserError
from med_model.training.retention import Retention, RetentionArguments, interpolate, new_retention


@pytest.fixture
def stage(model_directory, tmp_path):
    """Return the options of a stage with KL regularization: a tiny model as input, and a short file as text."""
    (tmp_path / "text.txt").write_text("高血压患者要少盐少油。" * 90, encoding="utf-8")
    return RetentionArguments(text=[str(tmp_path / "text.txt")], input_model=str(model_directory))


@pytest.fixture
def retention(random_gpt2, tokenizer):
    blocks = PackedBlocks(tokenizer, ["高血压患者要少盐少油，多吃蔬菜。" * 40], block_tokens=64)
    return Retention(random_gpt2(128), blocks, weight=0.5)


def test_retention_loss_is_zero_for_an_unchanged_model_and_pulls_a_changed_one_back(retention, random_gpt2):
    model = random_gpt2(128)
    assert retention.loss(model).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.transformer.wte.weight += 0.3 * torch.randn_like(model.transformer.wte.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = retention.loss(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 < sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_retention_weight_scales_the_loss_and_the_teacher_gets_no_gradient(retention, random_gpt2):
    model = random_gpt2(128)
    with torch.no_grad():
        model.transformer.ln_f.bias += 0.5
    torch.manual_seed(0)
    half = retention.loss(model)
    retention.weight = 1.0
    torch.manual_seed(0)
    whole = retention.loss(model)
    assert whole.item() == pytest.approx(2 * half.item(), rel=1e-5)
    whole.backward()
    assert all(parameter.grad is None for parameter in retention.teacher.parameters())
    assert model.transformer.wte.weight.grad.abs().max() > 0


def test_retention_temperature_divides_the_logits_of_the_teacher(retention, random_gpt2):
    model = random_gpt2(128)
    retention.temperature = 2.0
    torch.manual_seed(0)
    loss = retention.loss(model)
    torch.manual_seed(0)
    block = retention.blocks[int(torch.randint(len(retention.blocks), ()))]["input_ids"]
    with torch.no_grad():
        logits = model(block[None]).logits[0]
    direct = torch.nn.functional.kl_div(
        logits.log_softmax(-1), (logits / 2).log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert loss.item() == pytest.approx(retention.weight * direct.item(), rel=1e-4) and loss.item() > 0.01


def test_retention_temperature_must_be_above_zero():
    with pytest.raises(UserError, match="--retention_temperature 0 is not above 0"):
        RetentionArguments(retention_temperature=0)


@pytest.mark.parametrize("share, embedding_share", [(0.25, 0), (0.5, 0.75), (1, 1)])
def test_interpolate_keeps_the_shares_of_the_change(share, embedding_share, random_gpt2):
    start, model = random_gpt2(128), random_gpt2(128)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    changed = {name: weights.clone() for name, weights in model.state_dict().items()}
    interpolate(model, start, share, embedding_share)
    for name, weights in model.state_dict().items():
        before = start.state_dict()[name]
        kept = embedding_share if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")) else share
        torch.testing.assert_close(weights, before + kept * (changed[name] - before))


def test_new_retention_takes_the_named_teacher_or_else_the_input_model(stage, tokenizer, tmp_path):
    named = GPT2LMHeadModel.from_pretrained(stage.input_model)
    with torch.no_grad():
        named.transformer.ln_f.bias += 1
    for part in (named, tokenizer):
        part.save_pretrained(tmp_path / "named")
    for directory, bias in ((None, 0), (str(tmp_path / "named"), 1)):
        stage.retention_model = directory
        teacher = new_retention(stage, tokenizer, torch.device("cpu")).teacher
        assert teacher.transformer.ln_f.bias.mean() == bias


def test_new_retention_refuses_a_teacher_of_other_tokens_and_names_both(stage, tokenizer, tmp_path):
    stage.retention_model, stage.input_model = stage.input_model, str(tmp_path / "sft")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["别的"])
    with pytest.raises(
        UserError,
        match=f"tiny_gpt2/ has {len(tokenizer)} tokens and .*sft/ has {len(other)}, and they are not the same",
    ):
        new_retention(stage, other, torch.device("cpu"))

"""Check the optimizer of training/muon.py, and compare its updates with those of torch's Muon and AdamW."""

import copy
import io

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from med_model.training.muon import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, MuonWithAdamW, orthogonalized

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
LEARNING_RATES = (1e-3, 3e-3, 2e-3, 1e-3, 5e-4)  # one per step


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2))


def take_steps(model, optimizer, seed):
    """Take five steps with random gradients that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    for learning_rate in LEARNING_RATES:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


def is_layer_matrix(name):
    return name.startswith("transformer.h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


@pytest.mark.parametrize("shape", [(3, 16, 48), (1, 32, 32)])
def test_orthogonalized_brings_singular_values_near_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    if shape == (1, 32, 32):  # without the next line, a singular value could be too near 0 to be brought to 1
        matrices += 20 * torch.eye(32)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    in_their_directions = left.mT @ orthogonalized(matrices) @ right.mT
    singular_values = in_their_directions.diagonal(dim1=1, dim2=2)
    assert singular_values.min() > 0.65
    assert singular_values.max() < 1.25
    torch.testing.assert_close(in_their_directions, torch.diag_embed(singular_values), atol=1e-3, rtol=0)


def test_orthogonalized_equals_newton_schulz_iterations_on_the_matrices_themselves():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 48) * torch.logspace(0, -2, 16)[:, None]
    x = matrices.double()
    x = x / (x @ x.mT).norm(dim=(1, 2), keepdim=True).sqrt()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalized(matrices), x.float(), atol=1e-3, rtol=0)


def test_muon_with_adamw_updates_all_but_the_matrices_of_the_layers_as_torchs_adamw_does(model):
    reference = copy.deepcopy(model)
    named = [(name, parameter) for name, parameter in reference.named_parameters() if not is_layer_matrix(name)]
    decayed = [parameter for name, parameter in named if name in ("transformer.wte.weight", "transformer.wpe.weight")]
    plain = [parameter for _, parameter in named if parameter.ndim == 1]
    assert len(decayed) + len(plain) == len(named)
    groups = [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    take_steps(reference, torch.optim.AdamW(groups, betas=SETTINGS["betas"], eps=SETTINGS["eps"]), seed=1)
    take_steps(model, MuonWithAdamW(model, lr=1.0, **SETTINGS), seed=1)
    parameters = dict(model.named_parameters())
    for name, expected in named:
        torch.testing.assert_close(parameters[name], expected, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_muon_with_adamw_updates_the_matrices_of_the_layers_as_torchs_muon_does(model):
    start = copy.deepcopy(model)
    reference = copy.deepcopy(model)
    matrices = [(name, parameter) for name, parameter in reference.named_parameters() if is_layer_matrix(name)]
    assert len(matrices) == 4 * model.config.n_layer
    muon = torch.optim.Muon(
        [parameter for _, parameter in matrices],
        weight_decay=SETTINGS["weight_decay"],
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    take_steps(reference, muon, seed=1)
    take_steps(model, MuonWithAdamW(model, lr=1.0, **SETTINGS), seed=1)
    parameters, before = dict(model.named_parameters()), dict(start.named_parameters())
    for name, expected in matrices:
        change = expected - before[name]
        ours = parameters[name] - before[name]
        # torch divides by another norm and takes five iterations, in bfloat16, so the singular values near 1 differ.
        assert torch.cosine_similarity(ours.flatten(), change.flatten(), dim=0) > 0.97, name
        assert 0.9 < ours.norm() / change.norm() < 1.1, name


def test_muon_with_adamw_continues_identically_from_a_saved_state(model):
    optimizer = MuonWithAdamW(model, lr=1e-3, **SETTINGS)
    take_steps(model, optimizer, seed=1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_model = copy.deepcopy(model)
    resumed = MuonWithAdamW(resumed_model, lr=1e-3, **SETTINGS)
    resumed.load_state_dict(torch.load(file))
    take_steps(model, optimizer, seed=2)
    take_steps(resumed_model, resumed, seed=2)
    for (name, parameter), other in zip(model.named_parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_muon_with_adamw_leaves_a_parameter_without_a_gradient(model):
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonWithAdamW(model, lr=1e-3, **SETTINGS)
    model.transformer.ln_f.weight.grad = torch.ones_like(model.transformer.ln_f.weight)
    optimizer.step()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["transformer.ln_f.weight"]

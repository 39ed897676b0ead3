"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer that the Trainer can drive.

Muon: K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the update is scaled to the
size of AdamW's as in J. Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainingArguments

MUON_HELP = "Muon for the matrices of the layers and AdamW for the rest; --muon False takes --optim."
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic that steepens fastest at zero (Jordan et al.)
NEWTON_SCHULZ_STEPS = 5


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values about 1, by Newton-Schulz; in the matrix's own precision.

    torch.optim.Muon does this in bfloat16, which a CPU without AMX computes 5 to 10 times slower than float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class MuonWithAdamW(Optimizer):
    """One learning rate for both: Muon's update has the root mean square of a typical AdamW update."""

    MUON_MOMENTUM = 0.95
    MUON_RMS = 0.2

    def __init__(self, model: PreTrainedModel, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        layers = [p for name, p in named if p.ndim == 2 and ".h." in name]
        chosen = set(map(id, layers))
        tables = [p for _, p in named if p.ndim == 2 and id(p) not in chosen]
        vectors = [p for _, p in named if p.ndim < 2]
        groups = [
            {"params": layers, "muon": True, "weight_decay": weight_decay},
            {"params": tables, "muon": False, "weight_decay": weight_decay},
            {"params": vectors, "muon": False, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            update = self._muon_step if group["muon"] else self._adamw_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, self.state[parameter], group)
        return loss

    def _muon_step(self, parameter: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - self.MUON_MOMENTUM)
        direction = orthogonalized(parameter.grad.lerp(momentum, self.MUON_MOMENTUM))  # Nesterov
        parameter.add_(direction, alpha=-group["lr"] * self.MUON_RMS * max(parameter.shape) ** 0.5)

    def _adamw_step(self, parameter: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["mean"].lerp_(parameter.grad, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        denominator = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))


def optimizers_for(model: PreTrainedModel, training: TrainingArguments) -> tuple[Optimizer | None, None]:
    """The Trainer's `optimizers`: Muon with AdamW where `training.muon`, else (None, None), its own `--optim`."""
    if not training.muon:
        return None, None
    betas = (training.adam_beta1, training.adam_beta2)
    return MuonWithAdamW(model, training.learning_rate, betas, training.adam_epsilon, training.weight_decay), None

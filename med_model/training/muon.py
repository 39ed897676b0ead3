"""Define one optimizer for the Trainer: Muon updates the matrices of the layers, AdamW updates all other parameters.

Muon is from K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Muon's update is scaled
to the size of AdamW's update, as in J. Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from transformers import PreTrainedModel, TrainingArguments

from med_model.language import tr

MUON_HELP = tr("Muon for the matrices of the layers and AdamW for the rest; --muon False takes --optim.")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5 (Jordan et al. 2024)
NEWTON_SCHULZ_STEPS = 4


def _factor(gram: Tensor) -> Tensor:
    """Return a + b g + c g^2 for each g in `gram`, (batch, rows, rows)."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return the matrices with all singular values changed to about 1. The singular vectors stay the same.

    Newton-Schulz iterations compute the result: a matrix x becomes (a + b g + c g^2) x with g = x x^T. Each factor is
    a polynomial in the first g, so the iterations need only small square matrices, and x itself is read twice.
    The result has the shape of `matrices`.
    matrices: (batch, rows, columns) in float32 with rows <= columns. Less precision would lose small singular values.
    """
    gram = matrices @ matrices.mT  # (batch, rows, rows)
    # The iterations need singular values of at most 1. The root of the norm of `gram` is nearer to the largest one
    # than the norm of `matrices` (which Jordan et al. take), so four iterations do what five do there.
    largest = gram.norm(dim=(1, 2), keepdim=True) + 1e-14
    gram /= largest
    product = factor = _factor(gram)  # the product of all factors so far, and the last one
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ (matrices / largest.sqrt())


class MuonWithAdamW(Optimizer):
    """Update the matrices of the layers by Muon, and all other parameters by AdamW.

    Muon and AdamW use the same learning rate. Muon's update is scaled to the root mean square of a typical AdamW
    update.
    """

    MUON_MOMENTUM = 0.95
    MUON_RMS = 0.2  # root mean square of a typical AdamW update at a learning rate of 1

    def __init__(self, model: PreTrainedModel, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        layers = [parameter for name, parameter in named if parameter.ndim == 2 and ".h." in name]
        layer_ids = set(map(id, layers))
        tables = [parameter for _, parameter in named if parameter.ndim == 2 and id(parameter) not in layer_ids]
        vectors = [parameter for _, parameter in named if parameter.ndim < 2]
        # Fused AdamW needs its step counts on the device of the parameters. When a run is resumed, `load_state_dict`
        # moves them there only if "fused" is True.
        groups = [
            {"params": layers, "muon": True, "fused": False, "weight_decay": weight_decay},
            {"params": tables, "muon": False, "fused": True, "weight_decay": weight_decay},
            {"params": vectors, "muon": False, "fused": True, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                update = self._muon_step if group["muon"] else self._adamw_step
                update(parameters, group)
        return loss

    def _muon_step(self, parameters: list[Tensor], group: dict) -> None:
        """Update the matrices of the layers.

        Matrices of the same shape, or of the transposed shape, are orthogonalized in one batch. The matrix products
        for a single matrix are too small to keep all cores busy.
        """
        batches: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(parameter.grad, 1 - self.MUON_MOMENTUM)
            direction = parameter.grad.lerp(momentum, self.MUON_MOMENTUM)  # Nesterov momentum
            wide = direction if direction.size(0) <= direction.size(1) else direction.T
            batches.setdefault(tuple(wide.shape), []).append((parameter, wide))
        for shape, batch in batches.items():
            directions = torch.stack([wide for _, wide in batch])  # (batch, rows, columns), rows <= columns
            directions = orthogonalized(directions)
            step_size = group["lr"] * self.MUON_RMS * max(shape) ** 0.5
            for (parameter, _), direction in zip(batch, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction if parameter.shape == shape else direction.T, alpha=step_size)

    def _adamw_step(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def optimizers_for(model: PreTrainedModel, training: TrainingArguments) -> tuple[Optimizer | None, None]:
    """Return the Trainer's argument `optimizers`: (MuonWithAdamW, None) with --muon True, else (None, None).

    The Trainer replaces each None: the first by the optimizer of --optim, the second by the learning rate schedule.
    """
    if not training.muon:
        return None, None
    betas = (training.adam_beta1, training.adam_beta2)
    return MuonWithAdamW(model, training.learning_rate, betas, training.adam_epsilon, training.weight_decay), None

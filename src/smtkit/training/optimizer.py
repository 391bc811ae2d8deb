"""The optimizer, and the learning rate of each step."""

import math

import torch
from torch import nn

from smtkit.config import TrainingConfig


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only.

    Vectors, and parameters that the network names in `undecayed`, do not decay; parameters that
    require no gradient are left out.
    """
    undecayed = getattr(network, "undecayed", ())
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2 and name not in undecayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def schedule(config: TrainingConfig, step: int, fraction_done: float) -> float:
    """Factor of the learning rate: linear warm-up over steps, times 1 or a cosine falling to 0.

    The cosine follows `fraction_done`, the part of the run that is over, in [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction_done)))

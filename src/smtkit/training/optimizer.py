"""How an update is made: the optimizer, and the learning rate of every step."""

import math

import torch
from torch import nn

from smtkit.config import TrainingConfig


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay: not vectors, nor what the network names in `undecayed`."""
    spared = getattr(network, "undecayed", ())
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name not in spared
            (decayed if matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def schedule(config: TrainingConfig, step: int, share_done: float) -> float:
    """Factor of the learning rate: linear warm-up by steps, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share_done)))

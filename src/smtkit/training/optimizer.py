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
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    decayed = {n: p for n, p in trained.items() if p.ndim >= 2 and n not in undecayed}
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def fraction_done(config: TrainingConfig, step: int, seconds: float) -> float:
    """The part of a run that is over after `step` updates in `seconds`, by the nearer limit."""
    of_steps = step / config.max_steps if config.max_steps else 0.0
    of_seconds = seconds / config.max_seconds if config.max_seconds else 0.0
    return max(of_steps, of_seconds)


def schedule(config: TrainingConfig, step: int, fraction_done: float) -> float:
    """Factor of the learning rate: linear warm-up over steps, times 1 or a cosine falling to 0.

    The cosine follows `fraction_done`, the part of the run that is over, in [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction_done)))

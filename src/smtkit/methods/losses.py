"""The losses of Supervised Memory Training (Kumar & Isola, arXiv 2606.06479), on tensors only.

Losses are sums over their terms (`uniformity`: one value per group). A method counts the terms, so
that means can be taken over ranks and accumulation steps.

N: items, G: groups, K: slots, D: slot width, V: vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit import IGNORE


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[target] over targets that are not IGNORE, in nats.

    logits (..., V), targets (...). Zero, with zero gradient, where all are IGNORE.
    """
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        targets.reshape(-1),
        ignore_index=IGNORE,
        reduction="sum",
    )


def dynamics(predicted: Tensor, memory: Tensor) -> Tensor:
    """Sum over N transitions of the mean squared error of the K D numbers of a memory.

    predicted, memory (N, K, D): `f(memory[i], tokens[i])` and `memory[i + 1]`.
    """
    return (predicted.float() - memory.float()).square().flatten(1).mean(1).sum()


def divergence(label_logits: Tensor, predicted_logits: Tensor) -> Tensor:
    """Sum over N of KL(softmax(label_logits) || softmax(predicted_logits)), in nats.

    Both (N, V). No gradient flows into `label_logits`.
    """
    label = label_logits.detach().float().log_softmax(-1)
    predicted = predicted_logits.float().log_softmax(-1)
    return F.kl_div(predicted, label, reduction="sum", log_target=True)


def uniformity(memory: Tensor) -> Tensor:
    """log mean exp(-2 |u_a - u_b|^2) over pairs a != b of a group, averaged over slots.

    memory (G, N, K, D): G groups of N memories; u are the memories with each slot L2-normalised
    (Wang & Isola 2020). Returns (G,). Zero where all memories of a group are equal.
    """
    unit = F.normalize(memory.float(), dim=-1).transpose(1, 2)  # (G, K, N, D)
    squared_distance = 2 - 2 * unit @ unit.transpose(-1, -2)  # (G, K, N, N)
    count = unit.shape[2]
    others = ~torch.eye(count, dtype=torch.bool, device=memory.device)
    pairs = (-2 * squared_distance)[..., others]
    log_pairs = torch.log(torch.tensor(float(pairs.shape[-1]), device=memory.device))
    return (pairs.logsumexp(-1) - log_pairs).mean(-1)


@torch.no_grad()
def memory_health(memory: Tensor) -> dict[str, float]:
    """Signs of collapse in N > 1 memories (N, K, D) of different positions and sequences.

    `uniformity`: as above, 0 where all are equal; `variance`: the variance over memories, averaged
    over the K D numbers; `effective_rank`: exp of the entropy of the covariance's normalised
    eigenvalues (Roy & Vetterli 2007), 1 where memories differ along one direction only. All are
    NaN where a memory is, or the variance is infinite.
    """
    flat = memory.float().flatten(1)
    centered = flat - flat.mean(0)
    if not centered.square().mean().isfinite():
        return dict.fromkeys(("uniformity", "variance", "effective_rank"), math.nan)
    spectrum = torch.linalg.svdvals(centered).square()
    shares = spectrum / spectrum.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {
        "uniformity": float(uniformity(memory[None])[0]),
        "variance": float(centered.square().mean()),
        "effective_rank": float(entropy.exp()),
    }

"""The losses of Supervised Memory Training (Kumar & Isola, arXiv 2606.06479), tensors only.

Losses are sums over their terms (`uniformity`: a value for each group). A method counts the terms,
so that a mean can be taken over ranks and accumulation steps.

N: items, G: groups, K: slots, D: slot width, V: vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit import IGNORE


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[target] over targets that are not IGNORE.

    logits (..., V), targets (...); nats. Zero, with zero gradient, where all are IGNORE.
    """
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        targets.reshape(-1),
        ignore_index=IGNORE,
        reduction="sum",
    )


def dynamics(predicted: Tensor, memory: Tensor) -> Tensor:
    """Sum over N transitions of the mean squared error of a memory's K D numbers.

    predicted, memory (N, K, D): `f(memory[:, i], tokens[:, i])` and `memory[:, i + 1]`.
    """
    return (predicted.float() - memory.float()).square().flatten(1).mean(1).sum()


def divergence(label: Tensor, predicted: Tensor) -> Tensor:
    """Sum over N of KL(softmax(label) || softmax(predicted)); logits (N, V); nats.

    No gradient flows into the label.
    """
    wanted = label.detach().float().log_softmax(-1)
    said = predicted.float().log_softmax(-1)
    return F.kl_div(said, wanted, reduction="sum", log_target=True)


def pool_slots(memory: Tensor) -> Tensor:
    """(G, N, K, D) -> (G, N K, 1, D): every slot a memory of its own, to be compared with any."""
    return memory.flatten(1, 2)[:, :, None]


def uniformity(memory: Tensor) -> Tensor:
    """log mean exp(-2 |u_a - u_b|^2) over pairs a != b, for each slot, averaged over slots.

    memory (G, N, K, D): G groups, in each of which N memories are compared; u are memories with
    every slot L2-normalised (Wang & Isola 2020). Returns (G,). Zero: all are the same.
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
    """Signs of collapse in memories (N, K, D) of different positions and sequences, N > 1.

    `uniformity`: as above, 0 when all are the same; `variance`: mean over numbers of the variance
    over memories; `effective_rank`: exp of the entropy of the covariance's normalised eigenvalues
    (Roy & Vetterli 2007), 1 when memories differ along one direction only.
    """
    flat = memory.float().flatten(1)
    centered = flat - flat.mean(0)
    spectrum = torch.linalg.svdvals(centered).square()
    shares = spectrum / spectrum.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {
        "uniformity": float(uniformity(memory[None])[0]),
        "variance": float(centered.square().mean()),
        "effective_rank": float(entropy.exp()),
    }

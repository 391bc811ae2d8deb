"""Labels within reach of an RNN: encoded again and again from the RNN's own memory.

B: sequences, T: tokens, k: context, S: segments of k tokens, K: slots, D: slot width.
"""

import torch.nn.functional as F
from torch import Tensor

from smtkit.networks.encoders import GatedEncoder
from smtkit.networks.rnn import RecurrentNetwork


def encode_within_reach(
    encoder: GatedEncoder, network: RecurrentNetwork, tokens: Tensor, context: int
) -> Tensor:
    """Memories of segments of `context` tokens: (B, T) -> (B, T + S, K, D).

    For each segment, the memory that the RNN has before its first token, and then the encoder's
    after each of its tokens, encoded from that memory. The RNN rolls out from the encoder's empty
    memory; then all segments are encoded side by side. The last one may be shorter.
    """
    batch, length = tokens.shape
    context = min(context, length)
    segments = -(-length // context)
    empty = encoder.empty_memory().expand(batch, -1, -1)
    own = network.rollout(tokens, empty)[:, :length:context]  # (B, S, K, D)
    padded = F.pad(tokens, (0, segments * context - length))
    memory = encoder.encode(padded.view(-1, context), own.flatten(0, 1))  # (B S, k + 1, K, D)
    return memory.view(batch, -1, *memory.shape[2:])[:, : length + segments]

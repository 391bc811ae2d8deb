"""The network on all ranks: replicated by DistributedDataParallel, or sharded by FSDP."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smtkit.config import TrainingConfig
from smtkit.errors import UsageError
from smtkit.training.distributed import Ranks

ResultT = TypeVar("ResultT")


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The context in which `training.precision` holds."""
    precision = config.precision
    enabled = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


class ParallelNetwork:
    """Calls functions of a network so that `backward` sums gradients over ranks.

    DDP and FSDP act in hooks on the `forward` of one module, but methods call the parts of their
    network directly (`encoder.encode_at`, `cell.rollout`). So the network is wrapped in a module
    whose `forward` runs any given function. Parameters keep their names in `network`.
    """

    def __init__(self, network: nn.Module, ranks: Ranks, sharding: Literal["none", "fsdp"]) -> None:
        self._ranks = ranks
        self._caller: nn.Module = _Caller(network)
        self._is_sharded = ranks.size > 1 and sharding == "fsdp"
        if ranks.size == 1:
            return
        if sharding == "fsdp":
            _shard(self._caller, network, ranks)
        else:
            # find_unused_parameters: terms with weight 0 or a part that no term uses leave
            # parameters without gradient. It also keeps DDP from regrouping its buckets after the
            # first step, after which a resumed run would add gradients in another order.
            self._caller = DistributedDataParallel(
                self._caller, find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def __call__(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """`function(*arguments)`, with all of the network's parameters present on this rank.

        All ranks must call it. Unless gradients are disabled, `function` must return the loss,
        alone or in a tuple, and `backward` must follow.
        """
        return self._caller(function, *arguments)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the sum of all ranks' `loss` to the parameters' `grad`."""
        (loss * self._ranks.size).backward()  # DDP and FSDP average over ranks

    def clip_gradient(self, limit: float) -> Tensor:
        """Scales the gradient to a norm of at most `limit`; returns its norm before."""
        return _full_tensor(nn.utils.clip_grad_norm_(self._caller.parameters(), limit))

    def non_finite(self) -> Tensor:
        """On how many ranks a weight is infinite, not a number, or so large (10^19) that its tensor
        has no finite norm; without waiting for the result.

        All ranks must call it. Replicas are equal, so only shards are compared across ranks.
        """
        own = [getattr(p, "_local_tensor", p).detach() for p in self._caller.parameters()]
        own = [each for each in own if each.numel()]  # a rank may have no part of any parameter
        found = torch.zeros((), device=self._ranks.device)
        if own:
            norms = torch._foreach_norm(own, 2)
            found += ~torch.isfinite(torch.stack([norm.float() for norm in norms]).amax())
        return self._ranks.sum_tensors([found])[0] if self._is_sharded else found

    def accumulating(self, enabled: bool) -> AbstractContextManager[None]:
        """A context in which gradients stay local if `enabled`, to be summed by a later `backward`.

        All parts of a batch must use the same parameters: DDP does not sum the gradient of a
        parameter that the last part leaves unused.
        """
        if enabled and isinstance(self._caller, DistributedDataParallel):
            return self._caller.no_sync()
        synchronize = getattr(self._caller, "set_requires_gradient_sync", None)  # FSDP
        if synchronize:
            synchronize(not enabled)
        return nullcontext()


class _Caller(nn.Module):
    """A module whose `forward` calls a function of the network it holds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return function(*arguments)


def _shard(caller: nn.Module, network: nn.Module, ranks: Ranks) -> None:
    """Shards every block of a ModuleList by itself, and all other parameters together."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UsageError(
            f"`training.sharding` (fsdp): needs torch 2.6 or later, found {torch.__version__}"
        ) from None
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    # Parameters are sharded again after every forward, so that they are DTensors between calls.
    fully_shard(caller, mesh=mesh, reshard_after_forward=True)


def full_tensors(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors with all shards gathered, on the CPU of rank 0; empty on other ranks.

    All ranks must call it, with the same names.
    """
    gathered = {}
    for name in sorted(tensors):  # tensors that were loaded are in another order on each rank
        whole = _full_tensor(tensors[name])
        if ranks.is_first:
            gathered[name] = whole.detach().cpu()
    return gathered


def _full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over ranks; any other tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)  # DTensor
    return gather() if gather else tensor


def like_parameter(tensor: Tensor, parameter: Any) -> Tensor:
    """This rank's shard of `tensor` if `parameter` is sharded and of the same shape."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    whole = tensor.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)

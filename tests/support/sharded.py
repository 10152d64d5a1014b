"""Run by torchrun as two gloo processes: FSDP2 and DDP against one process.

`python -m torch.distributed.run --standalone --nproc-per-node 2 -m support.sharded ARCHITECTURE`
Each rank takes whole groups: the first one of width 3, the second once of width 3 and once of
width 1, since ranks may train at different widths.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from interlace import Groups, attach, detach
from interlace.attached import get_attachment
from interlace.errors import AttachError
from support.architectures import BRIDGE, attach_random, build, random_alive, random_ids
from support.processes import leave_group

POSITIONS = 11


def batch(rank: int, width: int) -> tuple[Tensor, Groups]:
    """What one rank sees: three rows, one group of three or three of one."""
    alive = random_alive(3 // width, width, POSITIONS, seed=rank)
    return random_ids(3, POSITIONS, seed=20 + rank), Groups(width, alive)


def shard(model: PreTrainedModel, **kwargs: MixedPrecisionPolicy) -> PreTrainedModel:
    for layer in get_attachment(model).layer_names:
        fully_shard(model.get_submodule(layer), **kwargs)
    fully_shard(model, **kwargs)
    return model


def low_precision(name: str) -> None:
    """FSDP2 casts what goes into a module; the groups come through whole."""
    ids, groups = batch(dist.get_rank(), 3)
    expected = attach_random(build(name))(ids, groups=groups).logits
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = shard(attach_random(build(name)), mp_policy=policy)
    out = model(ids, labels=ids, groups=groups, use_cache=False)
    out.loss.backward()
    gap = (out.logits.float() - expected).abs().mean()
    assert 0 < gap < 0.1 * expected.abs().mean(), gap


def compare(name: str, widths: list[int], wrap: Callable[[PreTrainedModel], nn.Module]) -> None:
    """Logits of this rank's rows, and the gradients averaged over the ranks, twice in a row."""
    rank = dist.get_rank()
    alone = attach_random(build(name)).train()
    model = attach_random(build(name)).train()
    wrapped = wrap(model)
    expected: Tensor | None = None
    for _ in range(2):
        for other, width in enumerate(widths):
            ids, groups = batch(other, width)
            out = alone(ids, labels=ids, groups=groups, use_cache=False)
            (out.loss / len(widths)).backward()
            expected = out.logits if other == rank else expected
        ids, groups = batch(rank, widths[rank])
        out = wrapped(ids, labels=ids, groups=groups, use_cache=False)
        torch.testing.assert_close(out.logits, expected, rtol=0, atol=2e-5)
        out.loss.backward()
    for (key, parameter), (_, other) in zip(
        model.named_parameters(), alone.named_parameters(), strict=True
    ):
        assert (parameter.grad is None) == (other.grad is None), key
        if parameter.grad is not None:
            whole = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)()
            torch.testing.assert_close(whole, other.grad, rtol=1e-4, atol=1e-6, msg=key)


def refused(name: str) -> None:
    """Blocks attached to shards would not be sharded, nor their gradients averaged."""
    bare = build(name)
    for layer in bare.model.layers:
        fully_shard(layer)
    for call in (lambda: attach(bare, BRIDGE), lambda: detach(shard(attach_random(build(name))))):
        with pytest.raises(AttachError, match="before sharding"):
            call()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    for widths in ([3, 3], [3, 1]):
        compare(sys.argv[1], widths, wrap=shard)
        compare(sys.argv[1], widths, wrap=DistributedDataParallel)
    low_precision(sys.argv[1])
    refused(sys.argv[1])
    leave_group()

"""Two processes save a model that FSDP2 shards over them: run by torch.distributed.run with FOLDER.

The first process then loads both saves and compares them with the model before it was sharded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import interlace
from interlace.attaching import get_attachment
from support.architectures import attach_random
from support.processes import leave_group
from support.saves import assert_same_weights, outputs, weights
from support.text import tiny_tokenizer


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = attach_random(interlace.load(folder / "base")[0])
    expected, logits = weights(model), outputs(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in get_attachment(model).layer_names:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)

    interlace.save(model, folder / "blocks")
    interlace.save(model, folder / "full", full=True, tokenizer=tiny_tokenizer())
    if dist.get_rank() == 0:
        for out in ("blocks", "full"):
            loaded, _ = interlace.load(folder / out)
            assert_same_weights(weights(loaded), expected)
            assert torch.equal(outputs(loaded), logits)
        print("both saves are whole")
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

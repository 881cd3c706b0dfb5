"""A stand-in for CUDA graphs on a CPU: operations with their tensors, which are computed again with these.

graph = recorded(batch)  # of the step that the batch has just computed; it is in `batch.graphs`
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Recorded(TorchDispatchMode):
    """Stands in for a CUDA graph: operations with their tensors, to be computed again with these."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        self.replays += 1
        now = {}
        for function, args, kwargs, before in self.calls:
            given = tree_map_only(torch.Tensor, lambda tensor: now.get(id(tensor), tensor), (args, kwargs))
            result = function(*given[0], **given[1])
            for old, new in zip(tree_leaves(before), tree_leaves(result), strict=True):
                if is_tensor(old):
                    now[id(old)] = new


def recorded(batch):
    """What `Batch._capture` does on CUDA."""
    held = [*vars(batch).values(), *vars(batch.cache).values()]
    state = [(tensor, tensor.clone()) for tensor in tree_leaves(held) if is_tensor(tensor)]
    with Recorded() as graph:
        batch.sample(batch.room.tokens, equal=False)
    for tensor, before in state:  # capturing computes nothing
        tensor.copy_(before)
    batch.graphs[batch.cache.layout] = graph
    return graph


def is_tensor(value):
    return isinstance(value, torch.Tensor)

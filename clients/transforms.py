"""What happens to a client's update between its training and the block's sum."""

from __future__ import annotations

import torch

from clients.training import Transform
from shared_models.arrays import global_norm
from shared_models.messages import BlockRequest
from shared_models.objectives import Sums


def clip_update(bound: float) -> Transform:
    """Returns what scales a larger `delta` down to a Euclidean norm.

    McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, section
    2.2, flat clipping: `delta * min(1, bound / |delta|)`. No client moves the mean by more than its
    share of the bound (Sun et al., "Can you really backdoor federated learning?", 2019).
    """

    def clip(_: BlockRequest, __: int, sums: Sums) -> Sums:
        factor = torch.clamp(bound / global_norm(sums["delta"]), max=1.0)
        clipped = {name: tensor * factor for name, tensor in sums["delta"].items()}
        return {**sums, "delta": clipped}

    return clip

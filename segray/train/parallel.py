"""Several processes that train one model: each has its share of the batch, gradients are averaged.

One process needs none of this and every function is then the identity. With `torchrun --nproc-per-node N`
(or any launcher that sets its environment, such as Ray Train) the loop runs in all N alike. On a CPU that
others use too, two processes of one thread gave far more than one of two: threads meet after every
operator, processes once a step.
"""

import os

import torch
from torch import distributed, nn

from segray.evaluate.instance import InstanceScores


def start() -> tuple[int, int]:
    """Join the other processes if a launcher started several; returns this one's rank and their number."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


@torch.no_grad()
def average(model: nn.Module, loss: float, workers: int) -> float:
    """Replace gradients and the running statistics of the norms by their means over the workers, in place.

    Returns the mean of the losses; one exchange carries everything.
    """
    if workers == 1:
        return loss
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([*(tensor.flatten() for tensor in tensors), torch.tensor([loss])])
    distributed.all_reduce(flat)
    flat /= workers
    means = torch.split(flat, [*(tensor.numel() for tensor in tensors), 1])
    for tensor, mean in zip(tensors, means, strict=False):
        tensor.copy_(mean.view_as(tensor))
    return means[-1].item()


def gathered(scores: InstanceScores, workers: int) -> InstanceScores:
    """Return the sum of every worker's scores, in each of them."""
    if workers == 1:
        return scores
    shards: list[InstanceScores] = [scores] * workers
    distributed.all_gather_object(shards, scores)
    return sum(shards, InstanceScores())

"""DDP as PyTorch's tutorials write it, for `torchrun`: the same network, loss, data and order as `train`.

    torchrun --nproc-per-node 2 -m jobs.benchmarks.ddp_plain DATA MODEL BATCH EPOCHS PROCESSES LR OUTPUT

MODEL: a model file that says which network; its weights are not taken. Writes a JSON list, a line an epoch.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import segray.models.device  # noqa: F401 - huge pages, as in every model of segray
from jobs.benchmarks.loader import loaded, plan
from jobs.benchmarks.pairs import SEED, split_pairs, transform
from segray.models.modelfile import SemanticCard, build_model, load_model_file

CLIP = 1.0


def main(
    data: str, model_file: str, batch_size: int, epochs: int, processes: int, lr: float, output: str
) -> None:
    """Train; channels_last and a thread a core, as `train` does."""
    distributed.init_process_group("gloo")
    rank, workers = distributed.get_rank(), distributed.get_world_size()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    card = load_model_file(Path(model_file)).card
    assert isinstance(card, SemanticCard)
    torch.manual_seed(SEED)
    model = build_model(card).to(memory_format=torch.channels_last)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (card.image_mean, card.image_std))

    train, val = split_pairs(Path(data))
    fill = tuple(round(255 * each) for each in card.image_mean)
    steps = plan(train, val, batch_size, epochs, rank, workers)
    batches = loaded(steps, transform(card.size, fill), processes)

    def loss_of(network: torch.nn.Module) -> torch.Tensor:
        pixels, classes = next(batches)
        images = pixels.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        return cross_entropy(network(images), classes.long(), ignore_index=255)

    lines = []
    for _ in range(epochs):
        losses, seconds = torch.zeros(1), 0.0
        model.train()
        for _ in range(-(-len(train) // batch_size)):
            started = time.monotonic()
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(parallel)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses += loss.item() / -(-len(train) // batch_size)
            seconds += time.monotonic() - started
        model.eval()
        with torch.inference_mode():
            for _ in val[rank::workers]:
                loss_of(model)
        distributed.all_reduce(losses)
        lines.append({"train_loss": losses.item() / workers, "images_per_s": len(train) / seconds})
    if rank == 0:
        Path(output).write_text(json.dumps(lines))
    distributed.destroy_process_group()


if __name__ == "__main__":
    data, model_file, batch_size, epochs, processes, lr, output = sys.argv[1:]
    main(data, model_file, int(batch_size), int(epochs), int(processes), float(lr), output)

"""How fast, how lean, how restartable: each figure is a ratio of two arms in one run on this machine.

    python jobs/benchmark.py                     all parts
    python jobs/benchmark.py rle annotate        some; --list names them
    python jobs/benchmark.py --quick             small sizes: does it run, are the outputs equal?

Method
------
Before anything is timed, both arms do the same work and their outputs are compared; if they differ
the figure is withheld and the exit code is 1. Then the arms take turns; a figure is the median of the pairs,
with the lowest and the highest. Goals are printed beside and missing one is no error: absolute times, and
on a busy machine the ratios too, move with what else runs.

Steady state is what one more picture costs: whole programs are timed over a few and over many pictures, and
the difference of the times is divided by the difference of the numbers. Starting Ray or DataLoader workers,
loading the model, filling and draining drop out; committing, merging and writing stay in, for both arms.

Pictures are 1280 x 800 and 4618 x 3464 JPEGs, tiled from the bundled real images at their own scale, or
`--photos`. Models are the bundled `nuclei-small`, a `maskrcnn_resnet50_fpn` with random weights that finds
about ten instances a picture (its speed is that of COCO's weights), and a stub that costs nothing.

MFU: the FLOPs of torchvision's forward, by `torch.utils.flop_counter`, over what a matrix product of the same
precision reaches here. Dollars are the time of one more picture at `--price-per-hour`.

What was tried
--------------
On two cores with AVX-512 bf16, beside other work, so only ratios of arms that took turns are given.

Model step. Before: convolutions 56 to 80 % of the time, RoIAlign 4 to 18, norms 4 to 17, casts up to 26.
Together 1.5 (R50 v2 fp32), 1.3 (v2 bf16), 2.0 (v1 bf16), 1.3 (nuclei-small, both) times as fast:
  kept    channels_last in fp32 too: 3x3 convolution 1.14, 1x1 2.0 to 2.5, stem 1.6, max pool 13
  kept    RoIAlign as embedding_bag over rows of the maps: fp32 3.6, bf16 7.7 against torchvision's kernel
  kept    the pyramid's maps added in place, without an enlarged one in between: 195 -> 5 ms on the finest
          level (fp32), steps of R50 v1 1.10 in fp32, 1.02 to 1.15 in bf16, the same bits
  kept    norms folded into convolutions, weights cast once; `--proposals` (default: the model's own number)
  kept    huge pages for large tensors (THP_MEM_ALLOC_ENABLE=1): a convolution with its page faults 1.36
  left    NNPACK's Winograd: 3.0 on the finest map, 0.5 on small ones, 16 times the error, private function
  kept    ReLU inside the convolution, by the operator of torch's compiler where there is one; the same bits
  left    linear as 1x1 convolution 0.43; the addition inside the convolution, too
  left    two images at a time on a thread each instead of one on two: R50 0.93 to 1.01, nuclei-small 1.1
  left    malloc that keeps its memory: as good as huge pages, but gives nothing back
  left    one NMS for a whole batch: torchvision tells images apart by shifting their boxes, which rounds
          later images more: what is found would depend on the neighbours. On a CPU a batch is one image
Around it, CPU time of a 1 MP picture (decoding alone 3.8 ms, then):
  kept    JPEGs by simplejpeg, straight to their place: 5.3 -> 2.2 ms, Pillow's pixels (cv2 3.8)
  kept    pixels from the decoder's process straight into the table: 1.71 -> 0.45 ms
  kept    views instead of Arrow scalars, columns filtered instead of tables: 3.9 -> 2.8 ms
  kept    threads that spin some milliseconds before they sleep (GOMP_SPINCOUNT=100000): R50 bf16 in the job
          1.23 against asleep at once, 1.18 against 10,000 (one run each). By default uint8 -> float beside
          two busy processes took 13 ms instead of 1.3
  kept    bytes for a model of one's own in memory that is used again: 0.7 -> 0.25 ms
  left    a fresh shared file for each table: 3.8 ms of page faults, 0.28 when it is used again
  left    reads striped over threads instead of one a file: no difference
Ray Data, 1 MP pictures a second on two cores (reading alone 118, with a stub model 95 before; 445, 290 now):
  kept    it looks for blocks every 0.05 s instead of 0.1, when decoders had filled the two blocks that it
          lets them be ahead: 160 -> 360; then, with faster decoding, four looks a table, 0.02 to 0.5 s,
          and four tables with the model instead of two: 140 to 202 -> 222 to 240 with a stub model
  kept    one reader for two cores: eight were started, at 1.3 s of imports each, and again after idle seconds
  kept    a table is one row to Ray: blocks as the stages cut them, 16 MB of files instead of 24 to 33
  kept    pools do not shrink (Ray left one decoder while it held work back for memory): 145 -> 168
  kept    70 % of the object store for Ray Data instead of 50, tables of 48 MiB instead of 32: 168 -> 195
  left    an object store of 2 or 3 GiB instead of 1: as fast as those 70 %
Batches of `train`, CPU time of 8 crops of 320 px: 123 ms by a DataLoader, 168 by Ray Data (loaders 20 of the
45, the consumer 13, Ray's own processes the rest; copies in a loader are 3):
  left    four batches a table of places, so four a task: loaders 122 -> 112, 169 in all
  kept    32 tables of places read ahead, 8 batches given to a loader: with Ray's 2 each loader waited half
          its time for the loop's next look. Batches a second, a DataLoader's beside: 27 (48) -> 40 (48 to 53)
Training U-Net of width 16 on two cores, images a second:
  kept    loaders stay: Ray ended one whenever a step took longer than a batch, and started another (7 s)
  kept    Ray's loop pauses 100 ms between looks; where all results wait to be taken it spun, in the process
          that trains: 2.4 to 2.8 -> 5 to 6. With 20 ms it still took 6 % of a core of each worker
  kept    the survey and the order of pairs load no torch: 5 s of CPU and half a GiB less in each process
  kept    two workers of a thread each instead of one of two: Mask R-CNN 2.8 -> 4.3; RoIAlign's backward pass
          and NMS have one thread
Run lengths: np.diff with `prepend` cost more than the rest of the step.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `jobs` is a package, wherever this starts

from jobs.benchmarks import (
    accuracy,
    after,
    annotate,
    blend,
    ddp,
    evaluate,
    feed,
    idle,
    memory,
    network,
    outlines,
    overhead,
    plain,
    reading,
    restart,
    rle,
    scale,
    scenes,
    seams,
    selection,
    start,
    step,
    train_memory,
)
from jobs.benchmarks.measure import Figure, Options, UnequalError

PARTS: dict[str, Callable[[Options], Iterator[Figure]]] = {
    "rle": rle.figures,
    "annotate": annotate.figures,
    "overhead": overhead.figures,
    "reading": reading.figures,
    "memory": memory.figures,
    "restart": restart.figures,
    "start": start.figures,
    "seams": seams.figures,
    "scenes": scenes.figures,
    "step": step.figures,
    "ddp": ddp.figures,
    "feed": feed.figures,
    "train_memory": train_memory.figures,
    "accuracy": accuracy.figures,
    "evaluate": evaluate.figures,
    "plain": plain.figures,
    "selection": selection.figures,
    "after": after.figures,
    "network": network.figures,
    "blend": blend.figures,
    "scale": scale.figures,
    "idle": idle.figures,
    "outlines": outlines.figures,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the arms' outputs were equal wherever they were compared, else 1."""
    given = _parser().parse_args(arguments)
    if given.list:
        for name, part in PARTS.items():
            print(f"{name:14}{(sys.modules[part.__module__].__doc__ or '').splitlines()[0]}")
        return 0
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as scratch:
        options = Options(
            Path(scratch),
            given.quick,
            given.images,
            given.pairs,
            given.photos,
            given.price_per_hour,
            given.labelled,
            given.people,
            given.streets,
        )
        figures, unequal = _measure(given.parts or list(PARTS), options)
    if given.json:
        record = {**about, "figures": [each.record() for each in figures], "unequal": unequal}
        given.json.write_text(json.dumps(record, indent=2) + "\n")
    return 1 if unequal else 0


def _measure(parts: Sequence[str], options: Options) -> tuple[list[Figure], list[str]]:
    """The figures, and what was unequal; printed as they come."""
    figures: list[Figure] = []
    unequal: list[str] = []
    for part in parts:
        print(f"\n{part:62}{'goal':>9}{'median':>9}  (pairs from to)", flush=True)
        try:
            for figure in PARTS[part](options):
                figures.append(figure)
                print("\n".join(figure.lines()), flush=True)
        except (UnequalError, RuntimeError) as error:  # RuntimeError: an arm failed
            unequal.append(str(error))
            print(f"UNEQUAL, nothing measured: {error}", flush=True)
    return figures, unequal


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    import torch

    from segray.versions import versions

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "cpu": f"{_cpu()}, {cores} cores, torch on {torch.get_num_threads()} threads",
        "gpu": gpu,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", 1)[0], epilog="parts: " + ", ".join(PARTS)
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="default: all")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--quick", action="store_true", help="small sizes and one pair: a check, no figures")
    parser.add_argument("--images", type=int, help="pictures of the larger job in each comparison")
    parser.add_argument("--pairs", type=int, help="how often the arms take turns")
    parser.add_argument("--photos", type=Path, help="folder of pictures to use instead of the bundled ones")
    parser.add_argument("--price-per-hour", type=float, default=0.1, help="of this machine, in dollars")
    parser.add_argument("--labelled", type=Path, help="labelled nuclei images, for `accuracy`")
    for name in ("people", "streets"):
        words = ("MODEL", "DATA", "SPLIT")
        parser.add_argument(f"--{name}", nargs=3, metavar=words, help="semantic model and data, for `after`")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder in /tmp goes away, too
    sys.exit(main())

"""The settings of the plain torchvision script: which are the best on this machine."""

from collections.abc import Iterator
from functools import partial

from jobs.benchmarks import commands
from jobs.benchmarks.measure import Figure, Options, ratios, take_turns
from jobs.benchmarks.pictures import folder_of
from jobs.benchmarks.weights import THRESHOLD, write_random_resnet50

FEW, MANY = 2, 8
OTHERS: list[tuple[object, ...]] = [
    ("--no-channels-last",),
    ("--workers", 2),
    ("--workers", 0),
    ("--batch-size", 2),
    ("--threads", 1),
]


def figures(options: Options) -> Iterator[Figure]:
    """Its time at its defaults over that at others."""
    weights = options.scratch / "resnet50.pth"
    few, many = folder_of(options, FEW), folder_of(options, MANY)
    write_random_resnet50(weights, sorted(few.iterdir()))
    for precision in ("fp32", "bf16"):
        arms = [
            partial(
                commands.plain_seconds_an_image,
                few,
                many,
                options.scratch / "plain.parquet",
                *("--weights", weights, "--score-threshold", THRESHOLD, "--precision", precision),
                *("--device", "cpu", *other),
            )
            for other in [(), *OTHERS]
        ]
        usual, *times = take_turns(arms, options.rounds(1))
        for other, taken in zip(OTHERS, times, strict=True):
            yield Figure(f"plain {precision}, {' '.join(map(str, other))}", "", ratios(usual, taken))

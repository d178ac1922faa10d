"""The whole job with a stub model against decoding alone on the same cores: what the pipeline costs."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from jobs.benchmarks import commands
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import folder_of
from jobs.benchmarks.reading import cores, read, seconds_a_picture
from jobs.benchmarks.stub import INSTANCES

FEW, MANY = 1000, 5000
STUB = "python:jobs.benchmarks.stub:quick"


def figures(options: Options) -> Iterator[Figure]:
    """Steady state: a larger job less a smaller one, over the difference of their pictures."""
    number, many = (32, 64) if options.quick else (FEW, max(options.images or MANY, FEW + 1))
    few, folder = folder_of(options, number), folder_of(options, many)
    output = options.scratch / "overhead"
    job(few, output)
    check_instances(output, few)
    ours, decoding, pillow = take_turns(
        [
            lambda: commands.seconds_an_image(lambda folder: job(folder, output), few, folder),
            lambda: seconds_a_picture("pool", few, folder),
            lambda: seconds_a_picture("pillow", few, folder),
        ],
        options.rounds(3),
    )
    rate, alone, by_pillow = (1 / median(each) for each in (ours, decoding, pillow))
    fact = (
        f"{INSTANCES} instances a picture, {cores()} cores; {rate:,.1f} against {alone:,.1f} images/s, by "
        f"Pillow {by_pillow:,.1f}; {rate / cores():,.1f} a core outside the model"
    )
    yield Figure("annotate with a stub model / decoding alone", ">= 0.6", ratios(decoding, ours), [fact])
    yield Figure("annotate with a stub model / Pillow decoding alone", "", ratios(pillow, ours))


def job(folder: Path, output: Path, weights: str = STUB) -> float:
    """Seconds of the whole command."""
    return commands.segray(folder, output, "--weights", weights, "--device", "cpu")


def check_instances(output: Path, folder: Path) -> None:
    """The gate: the stub saw the pixels that plain decoding gives, in every picture."""
    found = commands.segray_instances(output)
    scores = {name: [round(row["score"], 4) for row in rows] for name, rows in found.items()}
    pictures = read("pool", folder)["pictures"]
    assert isinstance(pictures, dict)
    wanted = {name: [round(score, 4)] * INSTANCES for name, score in pictures.items()}
    check(scores == wanted, "annotate with a stub model: other instances than the pixels say")

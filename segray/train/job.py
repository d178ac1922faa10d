"""`segray train`, step by step: check, list, survey, split, train, account."""

import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import yaml

from segray.atomic import put_atomically
from segray.cluster import RAY_ENVIRONMENT, start_ray
from segray.errors import ExitCode, ItemError, SettingsError
from segray.quiet import noise_to_file
from segray.settings import printable
from segray.sources.fetch import read_all
from segray.sources.labels import LabelRules, decide_values
from segray.storage import open_filesystem, shown
from segray.train.pairs import Pair, Pairs, list_pairs
from segray.train.settings import TrainSettings
from segray.train.splits import Deal, deal_alike, near_duplicates
from segray.versions import versions

SAMPLED = 64
"""Label pictures that are looked at to see what their numbers mean."""


@dataclass(frozen=True)
class Data:
    """The pairs that can be used, and what is known of them."""

    pairs: dict[str, list[Pair]]
    """Split -> pairs."""
    counts: list[int]
    """Pixels of each class in the training pairs."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    digest: str
    """sha256 over the splits and the contents of all pairs, hex."""
    rejected: list[tuple[str, str]]
    """(address, reason)."""
    listed: int


def train(settings: TrainSettings) -> ExitCode:
    """Train a model on `settings.data` into `settings.output`.

    Raises SettingsError for what can be known before work begins, JobFailedError for what broke later.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with noise_to_file() as log:
        listed = list_pairs(settings.data, settings.storage, settings.root)
        rules, reason = _rules(settings, listed)
        names = _class_names(settings, rules)
        _say(f"{len(listed.pairs):,} pairs, {len(names)} classes: {reason}")
        if settings.dry_run:
            return ExitCode.DONE
        started = time.monotonic()
        import segray.train.trainer  # noqa: F401 - Ray's libraries set up the loggers that are sent to the file

        start_ray(settings.ray, log)
        data = _surveyed(settings, listed, rules)
        sizes = ", ".join(f"{len(pairs):,} {split}" for split, pairs in data.pairs.items())
        _say(f"{sizes}; {len(data.rejected):,} of {data.listed:,} rejected")
        for address, why in data.rejected[:10]:
            _say(f"rejected: {address}: {why}")
        _train(settings, data, rules, names)
        best = _account(settings, data, time.monotonic() - started)
        where = f"{shown(settings.output)}/model.pt"
        _say(f"done: best mIoU {best['miou']:.4f} on val in epoch {best['epoch']}; {where}")
    share = len(data.rejected) / max(1, data.listed)
    return ExitCode.REJECTED if share > settings.max_rejects else ExitCode.DONE


def _rules(settings: TrainSettings, listed: Pairs) -> tuple[LabelRules, str]:
    if settings.values != "auto":
        values, reason = settings.values, "as the settings say"
    else:
        step = max(1, len(listed.pairs) // SAMPLED)
        sample = read_all([pair.label for pair in listed.pairs[::step][:SAMPLED]], settings.storage)
        data = [each for each in sample if isinstance(each, bytes)]
        decision = decide_values(data, settings.max_pixels, tuple(settings.void))
        values, reason = decision.values, decision.reason
    if values == "indices" and not settings.classes:
        raise SettingsError(f"classes: name the classes of the labels, from 0 up ({reason})")
    number = len(settings.classes) if settings.classes else 2
    return LabelRules(number, values, tuple(settings.void)), reason


def _class_names(settings: TrainSettings, rules: LabelRules) -> tuple[str, ...]:
    return tuple(settings.classes) if settings.classes else ("background", "foreground")[: rules.classes]


def _surveyed(settings: TrainSettings, listed: Pairs, rules: LabelRules) -> Data:
    """Look at every pair, deal them to the splits; photos that look alike go together."""
    from segray.train.examples import Surveyed, mean_and_deviation
    from segray.train.trainer import Reading, survey

    reading = Reading(rules, settings.max_pixels, settings.storage)
    told = survey(listed.pairs, reading, settings.loaders)
    good = [isinstance(each, Surveyed) for each in told]
    rejected = [(one.uri, one.error) for one in listed.rejected]
    rejected += [
        (pair.image.uri, each.reason)
        for pair, each in zip(listed.pairs, told, strict=True)
        if isinstance(each, ItemError)
    ]
    pairs = list(compress(listed.pairs, good))
    rows = [each for each in told if isinstance(each, Surveyed)]
    deal = Deal.of(pairs, settings.split_seed, settings.val_share, settings.test_share)
    groups = near_duplicates([row.likeness for row in rows])
    splits = deal_alike(deal, pairs, [row.digest for row in rows], groups)
    found: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair, split in zip(pairs, splits, strict=True):
        found[split].append(pair)
    for split in ("train", "val"):
        if not found[split]:
            raise SettingsError(
                f"data: no pair is left in {split} ({len(pairs):,} can be used); add some, name splits in "
                "the data, or set another split_seed or val_share"
            )
    trained = [row for row, split in zip(rows, splits, strict=True) if split == "train"]
    mean, deviation = mean_and_deviation(trained)
    lines = sorted(f"{split} {row.digest}" for row, split in zip(rows, splits, strict=True))
    counts = [sum(each) for each in zip(*(row.counts for row in trained), strict=True)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    number = len(listed.pairs) + len(listed.rejected)
    return Data(found, counts, mean, deviation, digest, rejected, number)


def _train(settings: TrainSettings, data: Data, rules: LabelRules, names: Sequence[str]) -> None:
    import torch

    from segray.models.semantic import complete_settings
    from segray.models.semanticfile import SemanticCard
    from segray.train.examples import Framing
    from segray.train.losses import LossSettings, inverse_frequency, outputs_for
    from segray.train.optimizers import OptimizerSettings
    from segray.train.schedules import ScheduleSettings
    from segray.train.semantic import Task
    from segray.train.trainer import Reading, Run, train

    loss = settings.loss if settings.loss != "auto" else "bce_dice" if len(names) == 2 else "ce_dice"
    card = SemanticCard(
        settings.arch,
        complete_settings(settings.arch, settings.arch_settings),
        outputs_for(loss, len(names)),
        tuple(names),
        data.mean,
        data.deviation,
        settings.size,
        settings.fit,
    )
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    train_pairs = data.pairs["train"]
    weights = inverse_frequency(data.counts) if loss == "weighted_ce" else None
    task = Task(
        card,
        LossSettings(loss, class_weights=weights),
        OptimizerSettings(settings.optimizer, settings.lr, settings.weight_decay),
        ScheduleSettings(settings.schedule, settings.warmup_steps),
        settings.epochs,
        -(-len(train_pairs) // settings.batch_size),
        settings.seed,
        precision,
        settings.clip,
        settings.ema,
        settings.pretrained,
    )
    fill = tuple(round(255 * each) for each in data.mean)
    framing = Framing(settings.size, settings.fit, settings.augment, settings.seed, fill)
    reading = Reading(rules, settings.max_pixels, settings.storage)
    run = Run(task, reading, framing, settings.batch_size, settings.loaders, device, settings.output)
    with _Watch(settings):
        train(run, data.pairs, settings.storage, settings.workers, settings.max_failures)


class _Watch:
    """Prints each epoch as its line comes into metrics.jsonl, with the time that is left."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watch":
        self._shown = len(_metrics(self._settings))
        self._started, self._first = time.monotonic(), self._shown
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._show()

    def _watch(self) -> None:
        while not self._done.wait(2.0):
            self._show()

    def _show(self) -> None:
        for line in _metrics(self._settings)[self._shown :]:
            self._shown += 1
            seconds = (time.monotonic() - self._started) / (self._shown - self._first)
            left = int(seconds * (self._settings.epochs - self._shown))
            _say(
                f"epoch {line['epoch']} of {self._settings.epochs}: loss {line['train_loss']:.4f}, val "
                f"{line['val_loss']:.4f}, mIoU {line['miou']:.4f}, {line['images_per_s']:.1f} images/s, "
                f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
            )


def _metrics(settings: TrainSettings) -> list[dict[str, Any]]:
    filesystem, path = open_filesystem(settings.output, settings.storage)
    filesystem.invalidate_cache()
    try:
        text = filesystem.cat_file(f"{path}/metrics.jsonl").decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _account(settings: TrainSettings, data: Data, seconds: float) -> dict[str, Any]:
    """Write run.json; returns the best epoch's line."""
    best = max(_metrics(settings), key=lambda line: float(line["miou"]))
    record = {
        "settings": yaml.safe_load(printable(settings)),
        "versions": versions(),
        "data": {
            "digest": data.digest,
            "listed": data.listed,
            "rejected": len(data.rejected),
            "rejects_by_reason": Counter(reason for _, reason in data.rejected),
            **{split: len(pairs) for split, pairs in data.pairs.items()},
            "class_pixels": data.counts,
        },
        "best": best,
        "seconds": round(seconds, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    filesystem, path = open_filesystem(settings.output, settings.storage)
    put_atomically(filesystem, f"{path}/run.json", json.dumps(record, indent=2).encode())
    return best


def _say(line: str) -> None:
    print(f"segray: {line}", file=sys.stderr, flush=True)

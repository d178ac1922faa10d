"""The training loop of one process: steps, scores, reports, and the checkpoints to resume from. No Ray.

    checkpoints/last.pt   network, average, optimiser, schedule, history, position in the epoch, its losses
    checkpoints/before.pt the previous one, should the last be damaged
    model.pt              the best network so far
    confusion.json        its pixels of val by true and predicted class, of a semantic network
    metrics.jsonl         the history, a line an epoch; tensorboard/ and curves.png show the same
    samples/              panels of a few images, as the best network sees them

All of it is written by the process of rank 0, each file atomically. All random draws and sums are functions
of the seed and the step, so a step repeated after a kill gives the same result.

Ray Train's own registry of checkpoints was tried: its snapshot file is written in place, so a kill in that
moment leaves a run that cannot resume, and reports of the last two seconds before a crash are lost.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import distributed

from segray.errors import SettingsError
from segray.models.modelfile import plain_contents
from segray.output.folder import Output
from segray.output.lease import follow, newest_generation
from segray.output.names import CONFUSION, METRICS, MODEL
from segray.train.identity import BEFORE, CHECKPOINT
from segray.train.train_step import Training

DRAWN_EVERY_S = 20.0
"""Curves take most of a second, which may be as long as an epoch."""


class Loop:
    """Runs epoch after epoch to the last, from the state of the output."""

    def __init__(
        self,
        training: Training,
        store: Output,
        rank: int,
        checkpoint_every_s: float,
        shown: Sequence[Any] = (),
        generation: int | None = None,
    ) -> None:
        """Store the arguments; shown: single images to draw. generation: of the lease; None: the newest."""
        self.training, self._store, self._rank, self._shown = training, store, rank, shown
        self._every_s = checkpoint_every_s
        self.position = 0
        """Finished steps of the present epoch."""
        self._losses = self._seconds = 0.0
        """Sum of their losses."""
        self._saved = time.monotonic()
        self._drawn = -math.inf
        self._is_whole = False
        """Whether the checkpoint in the output may replace the previous one."""
        follow(store, newest_generation(store) if generation is None else generation)

    def restore(self) -> str | None:
        """Resume from the last checkpoint, if there is one, or from the previous one.

        Returns a warning if the last is damaged. Raises SettingsError if both are.
        """
        warning = None
        for name in (CHECKPOINT, BEFORE):
            data = self._store.read(name)
            if data is None:
                continue
            try:
                state = plain_contents(f"{self._store.root}/{name}", data)
            except SettingsError as error:
                if name == BEFORE or self._store.read(BEFORE) is None:
                    raise
                warning = f"{error}; resuming from the previous one"
                continue
            self.training.load_state_dict(state["training"])
            self.position, self._losses, self._seconds = state["position"], state["losses"], state["seconds"]
            self._is_whole = name == CHECKPOINT
            break
        return warning

    def run(self, stream: Iterator[Any], train: int, scored: int) -> None:
        """Do the remaining steps.

        stream: from `position` of the present epoch on, this process's part of each global batch, then its
        images to score, then the next epoch. train: images of an epoch, of all processes; scored: this
        process's images to score.
        """
        recipe = self.training.recipe
        while self.training.epoch < recipe.epochs:
            while self.position < recipe.steps_per_epoch:
                self._step(stream)
            self._share_statistics()
            figures = self.training.figures(islice(stream, scored))
            self.training.epoch += 1
            self.training.observe(figures)
            self._report(
                {
                    "epoch": self.training.epoch,
                    "step": self.training.step,
                    "train_loss": self._losses / recipe.steps_per_epoch,
                    **{name: _finite(value) for name, value in figures.items()},
                    "lr": self.training.optimizer.param_groups[0]["lr"],
                    "images_per_s": train / self._seconds,
                    "time": time.time(),
                }
            )
            self.position, self._losses, self._seconds = 0, 0.0, 0.0
            self._save()

    def _step(self, stream: Iterator[Any]) -> None:
        started = time.monotonic()
        # seeds dropout and the like: the same after a restart as without one
        torch.manual_seed(_drawn(self.training.recipe.seed, self.training.step, self._rank))
        self._losses += self.training.train_step(next(stream))
        self.position += 1
        self._seconds += time.monotonic() - started
        if time.monotonic() - self._saved >= self._every_s:
            self._save()

    def _share_statistics(self) -> None:
        """Broadcast rank 0's running statistics of the norms: they are saved, and hence scored."""
        if distributed.is_initialized():
            for buffer in self.training.scored.buffers():
                distributed.broadcast(buffer, 0)

    def _report(self, line: dict[str, Any]) -> None:
        """Write all reports of an epoch; if the epoch is repeated, the same ones again."""
        history, best = self.training.history, self.training.best
        known = [each[best] for each in history if each[best] is not None]
        history.append(line)
        if self._rank != 0:
            return
        if not known or (line[best] is not None and line[best] > max(known)):
            self._store.write(MODEL, self.training.model_file())
            if self.training.confusion is not None:
                found = {"classes": self.training.names, "confusion": self.training.confusion}
                self._store.write(CONFUSION, json.dumps(found).encode())
            self._draw_samples()
        lines = (json.dumps(each, allow_nan=False) + "\n" for each in history)
        self._store.write(METRICS, "".join(lines).encode())
        self._draw_history()

    def _draw_samples(self) -> None:
        for picture in self._shown:
            with suppress(OSError):  # a storage error does not end training
                self.training.draw(picture, self._store.filesystem, f"{self._store.root}/samples")

    def _draw_history(self) -> None:
        from segray.train.reporting.curves import write_curves
        from segray.train.reporting.events import write_events

        recipe, store, history = self.training.recipe, self._store, self.training.history
        with suppress(OSError):
            write_events(store.filesystem, f"{store.root}/tensorboard", history, self.training.names)
        last = self.training.epoch == recipe.epochs
        if last or time.monotonic() - self._drawn >= DRAWN_EVERY_S:
            with suppress(OSError):
                path = f"{store.root}/curves.png"
                write_curves(store.filesystem, path, history, self.training.names)
            self._drawn = time.monotonic()

    def _save(self) -> None:
        """Save a checkpoint, from one process only: the state is the same in all."""
        self._saved = time.monotonic()
        if self._rank != 0:
            return
        state = {
            "training": self.training.state_dict(),
            "position": self.position,
            "losses": self._losses,
            "seconds": self._seconds,
        }
        file = io.BytesIO()
        torch.save(state, file)
        if self._is_whole:
            with suppress(FileNotFoundError):  # it was deleted
                self._store.copy(CHECKPOINT, BEFORE)
        self._store.write(CHECKPOINT, file.getvalue())
        self._is_whole = True
        self._saved = time.monotonic()


def _drawn(seed: int, step: int, rank: int) -> int:
    """Return a 63-bit seed for a step of a process."""
    digest = hashlib.sha256(f"step:{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _finite(value: Any) -> Any:
    """Return a figure for JSON: None for NaN and infinity."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The training of a semantic network: step and score. No Ray.

With several processes every sum (loss, confusion matrix) is added over them before it is divided.

A global batch is the images of all processes and of all parts that a process computes one after another
(`Recipe.accumulate`). The loss and its gradient are those of the whole batch, for any number of processes and
parts; only batch normalisation sees a part alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import torch
from torch import Tensor, distributed, nn

from segray.evaluate.confusion_matrix import SemanticScores
from segray.models.batchnorm import statistics_kept
from segray.models.device import DTYPES
from segray.models.modelfile import SemanticCard, build_model, model_bytes
from segray.models.semantic import classes_of, recompute_blocks
from segray.models.start_weights import begin_with
from segray.palette import VOID
from segray.train.losses import LossSettings, build_loss, reduce_over_ranks
from segray.train.train_step import Recipe, Training
from segray.train.transforms.semantic import Batch


@dataclass(frozen=True, kw_only=True)
class SemanticRecipe(Recipe):
    """The recipe of a semantic network.

    `accumulate` costs one more forward pass, without a graph, for the losses with Dice, whose gradient
    depends on the predictions of the whole batch; nothing for the others.
    """

    card: SemanticCard
    loss: LossSettings
    activation_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their maps (`recompute_blocks`)."""
    compile: bool = False
    """Train with `torch.compile`; images are scored without, as they may have any size."""

    def training(self, device: torch.device) -> "SemanticTraining":
        """Return the training of this process, see `Recipe`."""
        return SemanticTraining(self, device)


class SemanticTraining(Training):
    """The training of a network that classifies each pixel."""

    best = "miou"
    recipe: SemanticRecipe
    memory_format = torch.channels_last

    def __init__(self, recipe: SemanticRecipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.card).to(device)
        if recipe.start is not None:
            begin_with(model, recipe.start)
        self.recipe = recipe
        freeze_unused(model, self._blank())
        if recipe.activation_checkpointing:
            recompute_blocks(model)
        model.to(memory_format=self.memory_format)
        super().__init__(recipe, model, device)
        self.loss = build_loss(recipe.loss, recipe.card.outputs)
        if recipe.compile:
            self._network = torch.compile(self._network)
        shape = (1, len(recipe.card.bands), *(1 for _ in self._blank().shape[2:]))
        self._mean = torch.tensor(recipe.card.image_mean, device=device).reshape(shape)
        self._std = torch.tensor(recipe.card.image_std, device=device).reshape(shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes, see `Training`."""
        return self.recipe.card.classes

    def figures(self, pictures: Iterable[Batch]) -> dict[str, Any]:
        """Return loss, mIoU, Dice and accuracy, see `Training`."""
        loss, scores = self.score(pictures)
        self.confusion = scores.matrix.tolist()
        found = scores.compute()
        kept = {name: found[name] for name in ("miou", "dice", "pixel_accuracy")}
        return {"val_loss": loss, **kept, "iou": found["per_class"]["iou"]}

    def model_file(self) -> bytes:
        """Return the scored network as bytes of `model.pt`, see `Training`."""
        return model_bytes(self.recipe.card, self.scored.state_dict())

    def draw(self, picture: Batch, filesystem: fsspec.AbstractFileSystem, folder: str) -> None:
        """Write picture | truth | prediction | error, see `Training`."""
        from segray.train.reporting.samples import Sample, panels, write_panels

        pixels = picture.pixels[0].permute(1, 2, 0).numpy()
        found = self.classes(picture.pixels)[0].numpy()
        sample = Sample(picture.names[0], pixels, picture.classes[0].numpy(), found)
        write_panels(filesystem, folder, sample.name, panels(sample, self.names))

    @torch.inference_mode()
    def score(self, pictures: Iterable[Batch]) -> tuple[float, SemanticScores]:
        """Return (loss, confusion matrix) over the images of all processes; their numbers may differ."""
        scores = SemanticScores(len(self.recipe.card.classes))
        sums: Tensor | float = 0.0
        model = self.scored.eval()
        for batch in pictures:
            logits = self._scored_logits(model, batch.pixels)
            sums = sums + self.loss.sums(logits, batch.classes.to(self.device)).double()
            scores.add(batch.classes, classes_of(logits).cpu())
        length = sum(term.length for term in self.loss.terms)
        total = sums if isinstance(sums, Tensor) else torch.zeros(length, dtype=torch.float64)
        total = total.to(self.device)
        matrix = torch.from_numpy(scores.matrix).to(self.device)
        if self._parallel is not None:
            distributed.all_reduce(total)
            distributed.all_reduce(matrix)
        merged = SemanticScores(scores.classes, matrix=matrix.cpu().numpy())
        return self.loss.value(total).item(), merged

    @torch.inference_mode()
    def classes(self, pixels: Tensor) -> Tensor:
        """Return the scored network's classes, uint8 (n, h, w) on the CPU, of uint8 (n, bands, h, w)."""
        return classes_of(self._scored_logits(self.scored.eval(), pixels)).cpu()

    def _parts(self, batch: Batch) -> list[Batch]:
        """Split a batch into equally many parts in every process; void ones where images are missing."""
        images = torch.tensor(len(batch.classes), device=self.device)
        if self._parallel is not None and self.recipe.accumulate > 1:
            distributed.all_reduce(images, distributed.ReduceOp.MAX)
        number = min(self.recipe.accumulate, int(images))
        pixels, classes = batch.pixels, batch.classes
        if (missing := number - len(classes)) > 0:
            pixels = torch.cat([pixels, torch.zeros_like(pixels[:1]).expand(missing, *pixels.shape[1:])])
            classes = torch.cat([classes, torch.full_like(classes[:1], VOID).expand(missing, -1, -1)])
        parts = zip(pixels.tensor_split(number), classes.tensor_split(number), strict=True)
        return [Batch(*part, names=[]) for part in parts]

    def _backward(self, batch: Batch) -> Tensor:
        """Compute the gradient, see `Training`."""
        parts = self._parts(batch)
        if len(parts) == 1:
            loss = self.loss.value(reduce_over_ranks(self._sums(self._network, parts[0])))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        # see `reduce_over_ranks`: DDP averages over processes what must be summed
        slopes = self._workers * self.scaler.scale(self._slopes(parts))
        total = torch.zeros_like(slopes)
        for part in parts:
            with self._alone(part is not parts[-1]):
                sums = self._sums(self._network, part)
                sums.backward(slopes)  # type: ignore[no-untyped-call]
            total += sums.detach()
        return self.loss.value(reduce_over_ranks(total))

    @torch.no_grad()
    def _slopes(self, parts: Sequence[Batch]) -> Tensor:
        """Return the derivative of the loss by each of the sums over the global batch, 1-D.

        Where it depends on the predictions of the whole batch, they are computed in advance, without a graph,
        as in Gao et al. 2021, GradCache, https://arxiv.org/abs/2101.06983; dropout draws the same again.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), statistics_kept(self.model):
            total = torch.stack([self._sums(self._asked, part) for part in parts]).sum(0)
        return self.loss.slopes(reduce_over_ranks(total))

    def _asked(self, pixels: Tensor) -> Tensor:
        if not self.loss.fixed_slopes:
            logits: Tensor = self.model(pixels)
            return logits
        return pixels.new_zeros(len(pixels), self.recipe.card.outputs, *pixels.shape[2:])

    def _sums(self, network: Callable[[Tensor], Tensor], part: Batch) -> Tensor:
        return self.loss.sums(self._logits(network, part.pixels), part.classes.to(self.device))

    def _blank(self) -> Tensor:
        """Return a small input of the network, all 0."""
        return torch.zeros(1, len(self.recipe.card.bands), 64, 64)

    def _scored_logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """Return the logits of whole images, as `_logits`."""
        return self._logits(network, pixels)

    def _logits(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Return the logits, float (n, outputs, h, w), of uint8 (n, bands, height, width)."""
        normal = pixels.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
        kind, narrow = DTYPES[self.recipe.precision], self.recipe.precision != "fp32"
        with torch.autocast(self.device.type, kind if narrow else None, enabled=narrow):
            return network(normal.contiguous(memory_format=torch.channels_last))


def freeze_unused(network: nn.Module, blank: Tensor) -> None:
    """Disable the gradient of parameters on which no logit depends, as the lower half of PSPNet's encoder.

    DDP would wait for their gradients. Found with one small image, `blank`, in evaluation mode.
    """
    parameters = [each for each in network.parameters() if each.requires_grad]
    network.eval()
    logits = network(blank.to(parameters[0].device)).sum()
    network.train()
    gradients = torch.autograd.grad(logits, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)

"""One step of training: parts of a batch, all processes, both optimizers; taken by all of them or by none."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from svdrd.compress.compressai import CompressionModel
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.images.batches import Batch
from svdrd.compress.train.distributed import Processes
from svdrd.compress.train.faults import Culprit, diagnose
from svdrd.compress.train.noise import BatchNoise
from svdrd.compress.train.precision import Precision


class Wishes(NamedTuple):
    """What a process wants all to do after this step: stop by a signal, stop without images, save a checkpoint."""

    sigint: bool = False
    sigterm: bool = False
    no_images: bool = False
    save: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a step; the same on all processes.

    ``losses`` are means over the whole batch, ``norm`` is that of the gradient before clipping, ``term_norms`` are
    those of the weighted terms of the loss (empty where they were not asked for). ``overflow``: not taken, because
    float16's scale was too large, which is no fault. ``aux_taken``: whether the quantiles took theirs; they stay where
    the gradient of their own loss is not finite.
    """

    taken: bool
    losses: dict[str, float]
    norm: float
    wishes: Wishes
    term_norms: dict[str, float] = field(default_factory=dict)
    overflow: bool = False
    aux_taken: bool = True


class Step:
    """What a step is made of.

    Args:
        model: the codec, on its device.
        criterion: the loss.
        optimizers: of the weights and of the quantiles.
        processes: who else computes.
        precision: autocast and scale of the loss.
        noise: what stands for quantisation.
        patch_size: (height, width) of the crops.
        clip_max_norm: largest norm of the gradient; 0: any.
        accumulate: parts in which a process computes its crops; the step is that of all of them together.
        compiled: whether torch.compile translates the model.
        channels_last: memory layout of model and images.
    """

    def __init__(
        self,
        model: CompressionModel,
        criterion: BasisRateDistortionLoss,
        optimizers: tuple[Optimizer, Optimizer],
        processes: Processes,
        precision: Precision,
        noise: BatchNoise,
        patch_size: Sequence[int],
        clip_max_norm: float = 0.0,
        accumulate: int = 1,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.compiled_model = torch.compile(model) if compiled else model
        self.criterion = criterion
        self.optimizer, self.aux_optimizer = optimizers
        trained = [(name.endswith(".quantiles"), p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for is_quantiles, p in trained if not is_quantiles]
        self.quantiles = [p for is_quantiles, p in trained if is_quantiles]
        self.processes = processes
        self.precision = precision
        self.patch_size = patch_size
        self.clip_max_norm = clip_max_norm
        self.accumulate = accumulate
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.noise = noise

    def take(self, batch: Batch, crops: int, wishes: Wishes, measure_terms: bool = False) -> Outcome:
        """One step of both optimizers; where loss or gradient is not finite nothing changes, on any process.

        Args:
            batch: this process's share.
            crops: how many the shares of all processes have together; what the loss is the mean over.
            wishes: of this process; the outcome has those of all.
            measure_terms: whether to compute the gradient of each term by itself, too.
        """
        with self._running_statistics_kept() as keep_new_ones:
            outcome = self._take(batch, crops, wishes, measure_terms)
            if outcome.taken:
                keep_new_ones()
        return outcome

    def _take(self, batch: Batch, crops: int, wishes: Wishes, measure_terms: bool) -> Outcome:
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        self.noise.begin_step()
        names, sums, terms = self._backward(batch, crops, measure_terms)
        self.processes.sum_gradients(self.weights)
        numbers = torch.cat([sums, torch.tensor(wishes, dtype=sums.dtype, device=sums.device)])
        *totals, sigint, sigterm, no_images, save = self.processes.sum(numbers).tolist()
        agreed = Wishes(sigint > 0, sigterm > 0, no_images > 0, save > 0)
        losses = {name: total / crops for name, total in zip(names, totals, strict=True)}
        if agreed.no_images:
            self.noise.undo_step()
            return Outcome(False, losses, math.nan, agreed)

        scaler = self.precision.scaler
        scale = scaler.get_scale() if measure_terms else 1.0
        scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.weights if p.grad is not None)
        # Equal gradients, but a sum over them may round differently where the numbers of threads differ.
        self.processes.send_from_first([norm])
        if not (math.isfinite(losses["loss"]) and math.isfinite(norm.item())):
            overflow = math.isfinite(losses["loss"]) and self.precision.overflow_is_expected()
            scaler.update()
            return Outcome(False, losses, norm.item(), agreed, overflow=overflow)
        if self.clip_max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.weights, self.clip_max_norm, norm)
        scaler.step(self.optimizer)
        scaler.update()
        # After the weights' step, as in CompressAI: the quantiles follow the distribution as it is now.
        aux_loss = self.model.aux_loss()
        aux_taken = True
        if self.quantiles:
            aux_loss.backward()
            # The loss of the first process, too: all of them shall decide alike.
            aux_loss = aux_loss.detach()
            gradients = [p.grad for p in self.quantiles if p.grad is not None]
            self.processes.send_from_first([*gradients, aux_loss])
            aux_taken = all(bool(torch.isfinite(value).all()) for value in (aux_loss, *gradients))
            if aux_taken:
                self.aux_optimizer.step()
        term_norms = {name: (self.processes.sum(flat).norm() / scale).item() for name, flat in terms.items()}
        losses["aux_loss"] = float(aux_loss)
        return Outcome(True, losses, norm.item(), agreed, term_norms, aux_taken=aux_taken)

    def culprits(self, batch: Batch, crops: int, images: Sequence[str]) -> list[Culprit]:
        """Which terms and images made the last step fail, over all processes; ``images`` names this one's crops."""
        found: list[Culprit] = []
        first_of_mine = self.processes.part(crops)[0]
        with self._running_statistics_kept():
            for first, last, x in self._parts(batch, crops):
                named = images[first - first_of_mine : last - first_of_mine]

                def forward(x: Tensor, first: int = first, last: int = last) -> Any:
                    return self._forward(self.model, x, first, last, crops)

                found += diagnose(self.model, forward, self.criterion, x, named)
        everywhere = [culprit for one in self.processes.gather(found) for culprit in one]
        merged: dict[tuple[str, str], dict[str, None]] = {}
        for culprit in everywhere:
            merged.setdefault((culprit.term, culprit.where), {}).update(dict.fromkeys(culprit.images))
        return [Culprit(term, where, tuple(names)) for (term, where), names in merged.items()]

    @contextmanager
    def _running_statistics_kept(self) -> Iterator[Callable[[], None]]:
        """Buffers that ``forward`` itself changes, such as running means, are put back unless the yielded is called.

        CompressAI's own layers have none; those of other codecs do, and one NaN in a running mean stays for ever.
        """
        before = [
            (buffer, buffer.clone())
            for module in self.model.modules()
            if not type(module).__module__.startswith("compressai.")
            for buffer in module.buffers(recurse=False)
        ]
        yield before.clear
        for buffer, value in before:
            buffer.copy_(value)

    def _parts(self, batch: Batch, crops: int) -> Iterator[tuple[int, int, Tensor]]:
        """First and last (excluded) crop of each part, numbered in the whole batch, and the part."""
        if batch["problem"]:
            return
        start, _ = self.processes.part(crops)
        mine = len(batch["indices"])
        for number in range(self.accumulate):
            first, last = number * mine // self.accumulate, (number + 1) * mine // self.accumulate
            if first < last:
                x = batch["x"][first:last].to(self.processes.device, non_blocking=True)
                yield start + first, start + last, x.contiguous(memory_format=self.memory_format)

    def _forward(self, model: Any, x: Tensor, first: int, last: int, crops: int) -> Any:
        with self.noise.of(first, last, crops), self.precision.autocast():
            return model(x)

    def _backward(self, batch: Batch, crops: int, measure_terms: bool) -> tuple[list[str], Tensor, dict[str, Tensor]]:
        """Gradients of this process's crops, the sums of its losses, and the gradients of the terms if asked for."""
        names: list[str] = []
        sums = torch.zeros(0, dtype=torch.float64, device=self.processes.device)
        terms: dict[str, Tensor] = {}
        # A second backward over the same graph is not what torch.compile prepared it for.
        model = self.model if measure_terms else self.compiled_model
        for first, last, x in self._parts(batch, crops):
            losses = self.criterion(self._forward(model, x, first, last, crops), x)
            share = (last - first) / crops
            if measure_terms:
                self._add_term_gradients(terms, losses, share)
            self.precision.scaler.scale(losses["loss"] * share).backward()
            values = torch.stack([value.detach().double() for value in losses.values()]) * (last - first)
            sums = sums + values if names else values
            names = list(losses)
        if not names:
            # Without a crop, as happens in a last batch smaller than the number of processes: the noise moves on as on
            # the other processes, and the losses have the same names.
            with torch.no_grad():
                x = torch.zeros(1, 3, *self.patch_size, device=self.processes.device)
                losses = self.criterion(self._forward(self.model, x, 0, 1, crops), x)
            names = list(losses)
            sums = torch.zeros(len(names), dtype=torch.float64, device=self.processes.device)
            if measure_terms:
                size = sum(p.numel() for p in self.weights)
                terms = {name: torch.zeros(size, device=x.device) for name in self.criterion.terms(losses)}
        return names, sums, terms

    def _add_term_gradients(self, terms: dict[str, Tensor], losses: dict[str, Tensor], share: float) -> None:
        for name, value in self.criterion.terms(losses).items():
            scaled = self.precision.scaler.scale(value * share)
            gradients = torch.autograd.grad(scaled, self.weights, retain_graph=True, materialize_grads=True)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            terms[name] = terms[name] + flat if name in terms else flat

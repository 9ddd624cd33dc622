"""The training loop of ``svdrd finetune``: epochs, checkpoints, and a resume that goes on bit for bit."""

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compressai.models import CompressionModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm import tqdm

from svdrd.compress.codecs import checkpoints
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.errors import BadInput, TrainingDiverged, TrainingStopped
from svdrd.compress.images.batches import Batch, EqualSizeBatches, TrainingBatches, collate
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.train import faults
from svdrd.compress.train.distributed import Processes, fingerprint
from svdrd.compress.train.interruption import let_loaders_die_quietly
from svdrd.compress.train.logs import RunLog
from svdrd.compress.train.optimizers import make_optimizers, make_schedule
from svdrd.compress.train.options import saved
from svdrd.compress.train.precision import Precision
from svdrd.compress.train.step import Outcome, Step, Wishes
from svdrd.compress.train.summary import summarize
from svdrd.compress.train.validation import validate
from svdrd.compress.versions import versions

# A resumed run with other values of these would silently be neither the old run nor a new one.
FIXED_BY_RESUME = (
    "model", "seed", "batch_size", "crops_per_image", "patch_size", "freeze",
    "learning_rate", "aux_learning_rate", "lr_schedule", "precision",
)  # fmt: skip
LOG_EVERY = 10


class Training:
    """One run: everything that a checkpoint holds, and the loop over it.

    The position of a run is its number of steps: order and crops of an epoch are functions of seed and epoch, so a
    checkpoint of any step continues as the uninterrupted run would have. All processes run the same loop over the same
    numbers; the first one prints and writes.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: CompressionModel,
        criterion: BasisRateDistortionLoss,
        images: ImageFolder,
        train_loader: DataLoader[Batch],
        batches: TrainingBatches,
        validation_loader: DataLoader[Tensor],
        processes: Processes,
    ) -> None:
        self.arguments = arguments
        self.model = model
        self.criterion = criterion
        self.images = images
        self.train_loader = train_loader
        self.batches = batches
        self.validation_loader = validation_loader
        self.processes = processes
        self.steps_per_epoch = len(batches)
        self.total_steps = min(arguments.epochs * self.steps_per_epoch, arguments.steps or sys.maxsize)
        self.optimizer, self.aux_optimizer = make_optimizers(
            model, arguments.learning_rate, arguments.aux_learning_rate
        )
        self.lr_scheduler = make_schedule(arguments.lr_schedule, self.optimizer, self.total_steps)
        self.precision = Precision(arguments.precision, processes.device)
        self.stepper = Step(
            model,
            criterion,
            (self.optimizer, self.aux_optimizer),
            processes,
            self.precision,
            arguments.patch_size,
            arguments.clip_max_norm,
            arguments.accumulate,
            arguments.compile,
            arguments.channels_last,
        )
        self.step = 0
        self.validated_step = 0
        self.best_loss = math.inf
        self.faults = faults.Faults()
        self.damaged: set[str] = set()
        self.epoch_sums: dict[str, float] = {}
        self.epoch_count = 0
        self.history: list[dict[str, float]] = []
        # From here on not part of the run, but of this call.
        self.folder = Path(arguments.save_dir) if arguments.save else None
        self.log = RunLog(None, 0)
        self.interrupted: list[int] = []
        self.signal: int | None = None
        self.problem = ""
        self.save_wished = False
        self.saved_at = time.monotonic()
        self.saved_step = 0
        self.not_saved: OSError | None = None
        self.crops_trained = 0
        self.seconds_trained = 0.0

    def run(self, interrupted: list[int]) -> int:
        """Trains to the end, or until a signal's number appears in ``interrupted``; returns the exit code.

        Raises:
            TrainingDiverged: too many steps in a row had no finite loss and gradient.
            TrainingStopped: the images have vanished, or the last checkpoint could not be written.
        """
        self.interrupted = interrupted
        self.saved_step = self.step
        self.processes.check_equal("weights", fingerprint(self.model.parameters()))
        self.log = RunLog(self.folder if self.processes.first else None, self.step)
        try:
            while self.validated_step < self.total_steps and not self.stopping():
                end = min((self.validated_step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.total_steps)
                self.train(end)
                if not self.stopping():
                    self.validate(end)
            if self.stopping():
                self.save()
            self.log.metrics(self.history)
            self.log.json("summary.json", summarize(self))
        finally:
            self.log.close()
        return self.exit_code()

    def stopping(self) -> bool:
        return self.signal is not None or bool(self.problem)

    def exit_code(self) -> int:
        resume = f"go on with --resume {self.folder / checkpoints.LAST}" if self.folder else "nothing was saved"
        if self.not_saved is not None:
            raise TrainingStopped(
                f"step {self.step}: the checkpoint cannot be written ({self.not_saved.strerror}), the last one is of "
                f"step {self.saved_step}; free some space in {self.folder}, then {resume}"
            )
        if self.problem:
            raise TrainingStopped(f"step {self.step}: {self.problem}; when they are back, {resume}")
        if self.signal is None:
            return 0
        if self.processes.first:
            print(f"interrupted after step {self.step}; {resume}", file=sys.stderr)
        return 128 + self.signal

    def train(self, end: int) -> None:
        """Steps up to number ``end`` of the run, which lies in the present epoch."""
        if self.step == end:
            return
        self.model.train()
        # The control arm does not pay in every step for a number that validation reports anyway.
        self.criterion.monitor_basis = False
        epoch, position = divmod(self.step, self.steps_per_epoch)
        self.batches.epoch, self.batches.start = epoch, position
        last = (end - 1) % self.steps_per_epoch + 1
        crops = sum(self.batches.length(batch) for batch in range(position, last))
        began = time.perf_counter()
        hidden = None if self.processes.first else True
        with tqdm(total=crops, desc=f"epoch {epoch}", unit=" images", disable=hidden, leave=False) as progress:
            for batch in self._batches():
                values = self.train_step(batch)
                if self.problem:
                    break
                length = self.batches.length(self.step % self.steps_per_epoch)
                self.step += 1
                if isinstance(self.lr_scheduler, LambdaLR):
                    self.lr_scheduler.step()
                if values is not None:
                    for key, value in values.items():
                        self.epoch_sums[key] = self.epoch_sums.get(key, 0.0) + value
                    self.epoch_count += 1
                    if self.step % LOG_EVERY == 0:
                        self.log.scalars("train/", values, self.step)
                self.crops_trained += length
                progress.update(length)
                progress.set_postfix(self._shown(values, time.perf_counter() - began), refresh=False)
                if self.save_wished:
                    self.save()
                if self.step == end or self.stopping():
                    break
        self.seconds_trained += time.perf_counter() - began
        self.damaged = set().union(*self.processes.gather(self.damaged))

    def _batches(self) -> Iterator[Batch]:
        """The loader's batches; a loader that dies is a problem with the images, and all processes shall know."""
        batches = iter(self.train_loader)
        let_loaders_die_quietly()
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                yield {**collate([]), "problem": f"a loader of images ended ({' '.join(str(error).split())[:160]})"}

    def train_step(self, batch: Batch) -> dict[str, float] | None:
        """One step of both optimizers; None, and nothing changed, if the loss or its gradient was not finite."""
        crops = self.batches.length(self.step % self.steps_per_epoch)
        every = self.arguments.gradient_norms
        minutes = (time.monotonic() - self.saved_at) / 60
        wishes = Wishes(
            sigint=signal.SIGINT in self.interrupted,
            sigterm=signal.SIGTERM in self.interrupted,
            no_images=bool(batch["problem"]),
            save=self.folder is not None and self.processes.first and minutes >= self.arguments.checkpoint_minutes,
        )
        outcome = self.stepper.take(batch, crops, wishes, measure_terms=bool(every) and (self.step + 1) % every == 0)
        self.save_wished = outcome.wishes.save
        if outcome.wishes.sigint or outcome.wishes.sigterm:
            self.signal = int(signal.SIGINT if outcome.wishes.sigint else signal.SIGTERM)
        if outcome.wishes.no_images:
            self.problem = next(text for text in self.processes.gather(batch["problem"]) if text)
            return None
        for index, wanted in zip(batch["indices"], batch["wanted"], strict=True):
            if index != wanted:
                self.damaged.add(self.images.name(wanted))
        if outcome.overflow:
            return None
        if not outcome.taken:
            self.count_fault(batch, crops, outcome)
            return None
        self.faults.in_a_row = 0
        self.log.scalars("gradient_norm/", outcome.term_norms, self.step + 1)
        return outcome.losses

    def count_fault(self, batch: Batch, crops: int, outcome: Outcome) -> None:
        """Says which term and images a skipped step failed by; gives the run up after too many in a row."""
        names = [self.images.name(index) for index in batch["indices"]]
        culprits = self.stepper.culprits(batch, crops, names)
        self.faults.add(culprits)
        number, loss, norm = self.step + 1, outcome.losses["loss"], outcome.norm
        if self.processes.first:
            causes = "; ".join(map(str, culprits)) or "the sum of finite parts"
            print(
                f"step {number}: skipped, its loss is {loss:g} and its gradient norm {norm:g}: {causes}",
                file=sys.stderr,
            )
        self.log.append_fault(faults.record(number, loss, norm, culprits))
        if self.faults.in_a_row < self.arguments.max_skipped:
            return
        evidence = "nothing was saved"
        if self.folder is not None:
            part = f"_process_{self.processes.rank}" if self.processes.size > 1 else ""
            evidence = faults.save_evidence(
                self.folder / f"fault_step_{number}{part}.pth.tar",
                {
                    "step": number,
                    "loss": loss,
                    "gradient_norm": norm,
                    "images": names,
                    "x": batch["x"],
                    "culprits": [str(culprit) for culprit in culprits],
                    "noise": self.stepper.noise.start,
                    "state_dict": self.model.state_dict(),
                    "arguments": saved(self.arguments),
                },
            )
        raise TrainingDiverged(
            f"step {number}: {self.faults.in_a_row} steps in a row without a finite loss and gradient ({evidence}); "
            "start anew from the last checkpoint with --checkpoint and a smaller --learning-rate or --smooth 0.001"
        )

    def validate(self, end: int) -> None:
        """Validation, schedule, metrics, checkpoints; nothing of it if a signal comes in between."""
        batches = self.validation_loader.batch_sampler
        assert isinstance(batches, EqualSizeBatches)
        validation = validate(
            self.model,
            self.criterion,
            self.validation_loader,
            batches.numbers,
            self.processes,
            self.arguments.patch_size,
            self.interrupted,
            self.arguments.log_images,
        )
        self.signal, self.problem = validation.signal, validation.problem
        if validation.results is None:
            return
        results = validation.results
        # Two replicas that drift apart would average gradients of two models and train neither.
        self.processes.check_equal("weights", fingerprint(self.model.parameters()))
        self.validated_step = end
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(self.lr_scheduler, ReduceLROnPlateau) and end % self.steps_per_epoch == 0:
            self.lr_scheduler.step(results["loss"])
        epoch = (end - 1) // self.steps_per_epoch
        row = {"epoch": epoch, "step": end, "learning_rate": learning_rate, "skipped_steps": self.faults.steps}
        row.update({f"train_{key}": value / self.epoch_count for key, value in self.epoch_sums.items()})
        row.update({f"val_{key}": value for key, value in results.items()})
        self.history.append(row)
        self.epoch_sums, self.epoch_count = {}, 0
        is_best = results["loss"] < self.best_loss
        if self.processes.first:
            print(
                f"epoch {epoch}  step {end}  lr {learning_rate:.3g}  train loss {row.get('train_loss', math.nan):.4f}  "
                f"val loss {results['loss']:.4f}  bpp {results['bpp_loss']:.4f} (estimate)  "
                f"PSNR {results['psnr']:.3f} dB  MS-SSIM {results['ms_ssim']:.5f}  "
                f"basis {results['basis_loss']:.5f}{'  best' if is_best else ''}",
                flush=True,
            )
        self.log.scalars("val/", results, end)
        self.log.scalars("", {"learning_rate": learning_rate, "images_per_second": self.images_per_second()}, end)
        for index, picture in enumerate(validation.pictures):
            self.log.image(f"original_and_reconstruction/{index}", picture, end)
        self.save(best=is_best)
        self.log.metrics(self.history)
        self.log.json("summary.json", summarize(self))

    def save(self, best: bool = False) -> None:
        """Writes the checkpoint; where that fails the training goes on, with the last one that could be written."""
        before = self.best_loss
        if best:
            self.best_loss = self.history[-1]["val_loss"]
        # All processes take part: each has random numbers of its own.
        state = self.state()
        error: OSError | None = None
        best_written = False
        if self.folder is not None and self.processes.first:
            try:
                # The best one first: killed in between, the run resumes before both and finds the best again.
                if best:
                    checkpoints.save(self.folder / checkpoints.BEST, state)
                    best_written = True
                checkpoints.save(self.folder / checkpoints.LAST, state)
                self.saved_step = self.step
            except OSError as caught:
                error = caught
                print(
                    f"step {self.step}: the checkpoint cannot be written to {self.folder} ({error.strerror}); the "
                    f"training goes on, the checkpoint there is of step {self.saved_step}",
                    file=sys.stderr,
                    flush=True,
                )
        self.saved_at = time.monotonic()
        self.not_saved, best_written = self.processes.gather((error, best_written))[0]
        if best and self.folder is not None and not best_written:
            # What the next epochs have to beat is what lies on the disk.
            self.best_loss = before

    def state(self) -> dict[str, Any]:
        """CompressAI's checkpoint layout, and what it takes to go on bit for bit."""
        with torch.no_grad():
            # Only force=True replaces CDFs that are there already; training itself does not read them.
            self.model.update(force=True)
        on_cuda = self.processes.device.type == "cuda"
        rng = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.processes.device) if on_cuda else None,
        }
        return {
            "epoch": max(self.step - 1, 0) // self.steps_per_epoch,
            "state_dict": self.model.state_dict(),
            "loss": self.history[-1]["val_loss"] if self.history else math.inf,
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "step": self.step,
            "validated_step": self.validated_step,
            "steps_per_epoch": self.steps_per_epoch,
            "images": self.images.fingerprint(),
            "best_loss": self.best_loss,
            "skipped_steps": self.faults.steps,
            "faults": self.faults.state(),
            "damaged_images": sorted(self.damaged),
            "epoch_sums": self.epoch_sums,
            "epoch_count": self.epoch_count,
            "metrics": self.history,
            "noise": self.stepper.noise.generator.get_state(),
            "rng": self.processes.gather(rng),
            "arguments": saved(self.arguments),
            "versions": versions(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``; the model has been loaded from it already."""
        resume = f"--resume {self.arguments.resume}"
        for name in FIXED_BY_RESUME:
            before, now = state["arguments"][name], getattr(self.arguments, name)
            if (list(now) if isinstance(now, (list, tuple)) else now) != before:
                raise BadInput(
                    f"{resume}: the run has {name} {before}, given is {now}; leave it out, or start a new run from "
                    "these weights with --checkpoint"
                )
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise BadInput(
                f"{resume}: the run has {state['steps_per_epoch']} steps an epoch, with these images there are "
                f"{self.steps_per_epoch}; resume with the same images, or start a new run with --checkpoint"
            )
        if state["images"] != self.images.fingerprint():
            raise BadInput(
                f"{resume}: the images of {self.images.root} are not those that the run began with (other names or "
                "sizes); resume with the same images, or start a new run with --checkpoint"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.validated_step = state["validated_step"]
        self.best_loss = state["best_loss"]
        self.faults = faults.Faults(**state["faults"])
        self.damaged = set(state["damaged_images"])
        self.epoch_sums = state["epoch_sums"]
        self.epoch_count = state["epoch_count"]
        self.history = state["metrics"]
        self.stepper.noise.generator.set_state(state["noise"])
        # With another number of processes nothing is bit for bit any more, and any state will do.
        rng = state["rng"][self.processes.rank % len(state["rng"])]
        torch.set_rng_state(rng["cpu"])
        if self.processes.device.type == "cuda" and rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.processes.device)

    def images_per_second(self) -> float:
        """Crops trained per second of this call, over all processes; with loading, without validation."""
        return self.crops_trained / self.seconds_trained if self.seconds_trained else 0.0

    def _shown(self, values: dict[str, float] | None, seconds: float) -> dict[str, str]:
        """Beside the progress bar: the losses, and the time left to the end of the run."""
        steps = max(self.step % self.steps_per_epoch or self.steps_per_epoch, 1) - self.batches.start
        left = tqdm.format_interval(seconds / steps * (self.total_steps - self.step))
        losses = {key.removesuffix("_loss"): f"{value:.4g}" for key, value in (values or {}).items()}
        return {**losses, "left": left}

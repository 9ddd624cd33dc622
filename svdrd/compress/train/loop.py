"""The training loop of ``svdrd finetune``: epochs of steps, validation, checkpoints, logs."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm import tqdm

from svdrd.compress.codecs import checkpoints
from svdrd.compress.errors import TrainingDiverged, TrainingStopped
from svdrd.compress.images.batches import Batch, EqualSizeBatches, TrainingBatches, collate
from svdrd.compress.showing import show
from svdrd.compress.train import faults
from svdrd.compress.train.distributed import fingerprint
from svdrd.compress.train.interruption import let_loaders_die_quietly
from svdrd.compress.train.logs import RunLog
from svdrd.compress.train.state import RunState
from svdrd.compress.train.step import Outcome, Step, Wishes
from svdrd.compress.train.summary import summarize
from svdrd.compress.train.validation import validate

LOG_EVERY = 10
# The loss of the quantiles.
AUX = faults.Culprit("aux", "value or gradient", ())


class Training:
    """The loop over a run: steps, validation, checkpoints, logs.

    All processes run the same loop over the same numbers; the first one prints and writes.

    Args:
        state: of the run; everything else here is of this call.
        stepper: takes a step.
        batches: the crops of an epoch, in their order.
        total_steps: where the run ends.
        train_loader: loads ``batches``.
        validation_loader: loads this process's validation images.
    """

    def __init__(
        self,
        state: RunState,
        stepper: Step,
        batches: TrainingBatches,
        total_steps: int,
        train_loader: DataLoader[Batch],
        validation_loader: DataLoader[Tensor],
    ) -> None:
        self.config = state.config
        self.state = state
        self.stepper = stepper
        self.batches = batches
        self.total_steps = total_steps
        self.train_loader = train_loader
        self.validation_loader = validation_loader
        self.processes = state.processes
        self.steps_per_epoch = state.steps_per_epoch
        self.folder = state.config.folder
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
            TrainingDiverged: too many steps in a row had no finite loss and gradient, or the weights, tables or the
                validation are not finite. What is saved stays as it is.
            TrainingStopped: the images have vanished, or the last checkpoint could not be written.
        """
        state = self.state
        self.interrupted = interrupted
        self.saved_step = state.step
        self.processes.check_equal("weights", fingerprint(state.model.parameters()))
        self.log = RunLog(self.folder if self.processes.first else None, state.step)
        try:
            while state.validated_step < self.total_steps and not self.stopping():
                end = min((state.validated_step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.total_steps)
                self.train(end)
                if not self.stopping():
                    self.validate(end)
            if self.stopping():
                self.save()
            self.log.metrics(state.history)
            self.log.json("summary.json", self.summary())
        except TrainingDiverged:
            # The one of before may be of a run that was finished, and begun again with more epochs.
            self.log.json("summary.json", self.summary())
            raise
        finally:
            self.log.close()
        return self.exit_code()

    def stopping(self) -> bool:
        return self.signal is not None or bool(self.problem)

    def exit_code(self) -> int:
        state = self.state
        resume = f"go on with --resume {self.folder / checkpoints.LAST}" if self.folder else "nothing was saved"
        if self.not_saved is not None:
            raise TrainingStopped(
                f"step {state.step}: the checkpoint cannot be written ({self.not_saved.strerror}), the last one is of "
                f"step {self.saved_step}; free some space in {self.folder}, then {resume}"
            )
        if self.problem:
            raise TrainingStopped(f"step {state.step}: {self.problem}; when they are back, {resume}")
        if self.signal is None:
            return 0
        if self.processes.first:
            show(f"interrupted after step {state.step}; {resume}", file=sys.stderr)
        return 128 + self.signal

    def train(self, end: int) -> None:
        """Steps up to number ``end`` of the run, which lies in the present epoch."""
        state = self.state
        if state.step == end:
            return
        state.model.train()
        # The control arm does not pay in every step for a number that validation reports anyway.
        self.stepper.criterion.monitor_basis = False
        epoch, position = divmod(state.step, self.steps_per_epoch)
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
                length = self.batches.length(state.step % self.steps_per_epoch)
                state.step += 1
                if isinstance(state.lr_scheduler, LambdaLR):
                    state.lr_scheduler.step()
                if values is not None:
                    for key, value in values.items():
                        state.epoch_sums[key] = state.epoch_sums.get(key, 0.0) + value
                    state.epoch_count += 1
                    if state.step % LOG_EVERY == 0:
                        self.log.scalars("train/", values, state.step)
                self.crops_trained += length
                progress.update(length)
                progress.set_postfix(self._shown(values, time.perf_counter() - began), refresh=False)
                if self.save_wished:
                    self.save()
                if state.step == end or self.stopping():
                    break
        self.seconds_trained += time.perf_counter() - began
        state.damaged = set().union(*self.processes.gather(state.damaged))

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
        """One step of both optimizers; None if a loss or its gradient was not finite, and nothing changed by it."""
        state = self.state
        crops = self.batches.length(state.step % self.steps_per_epoch)
        every = self.config.gradient_norms
        minutes = (time.monotonic() - self.saved_at) / 60
        wishes = Wishes(
            sigint=signal.SIGINT in self.interrupted,
            sigterm=signal.SIGTERM in self.interrupted,
            no_images=bool(batch["problem"]),
            save=self.folder is not None and self.processes.first and minutes >= self.config.checkpoint_minutes,
        )
        outcome = self.stepper.take(batch, crops, wishes, measure_terms=bool(every) and (state.step + 1) % every == 0)
        self.save_wished = outcome.wishes.save
        if outcome.wishes.sigint or outcome.wishes.sigterm:
            self.signal = int(signal.SIGINT if outcome.wishes.sigint else signal.SIGTERM)
        if outcome.wishes.no_images:
            self.problem = next(text for text in self.processes.gather(batch["problem"]) if text)
            return None
        for index, wanted in zip(batch["indices"], batch["wanted"], strict=True):
            if index != wanted:
                state.damaged.add(state.images.name(wanted))
        if outcome.overflow:
            return None
        if not (outcome.taken and outcome.aux_taken):
            self.count_fault(batch, crops, outcome)
            return None
        state.faults.in_a_row = 0
        self.log.scalars("gradient_norm/", outcome.term_norms, state.step + 1)
        return outcome.losses

    def count_fault(self, batch: Batch, crops: int, outcome: Outcome) -> None:
        """Says which term and images a skipped step failed by; gives the run up after too many in a row."""
        state = self.state
        names = [state.images.name(index) for index in batch["indices"]]
        # Weights that took their step: it is the loss of the quantiles, which depends on no image.
        culprits = [AUX] if outcome.taken else self.stepper.culprits(batch, crops, names)
        state.faults.add(culprits)
        number, loss, norm = state.step + 1, outcome.losses["loss"], outcome.norm
        if self.processes.first:
            causes = "; ".join(map(str, culprits)) or "the sum of finite parts"
            what = "the quantiles stay" if outcome.taken else "skipped"
            show(
                f"step {number}: {what}, its loss is {loss:g} and its gradient norm {norm:g}: {causes}",
                file=sys.stderr,
            )
        self.log.append_fault(faults.record(number, loss, norm, culprits))
        if state.faults.in_a_row < self.config.max_skipped:
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
                    "state_dict": state.model.state_dict(),
                    "arguments": self.config.saved(),
                },
            )
        raise TrainingDiverged(
            f"step {number}: {state.faults.in_a_row} steps in a row without a finite loss and gradient ({evidence}); "
            "start anew from the last checkpoint with --checkpoint and a smaller --learning-rate or --smooth 0.001"
        )

    def validate(self, end: int) -> None:
        """Validation, schedule, metrics, checkpoints; nothing of it if a signal comes in between."""
        state = self.state
        self.check_usable()
        batches = self.validation_loader.batch_sampler
        assert isinstance(batches, EqualSizeBatches)
        validation = validate(
            state.model,
            self.stepper.criterion,
            self.validation_loader,
            batches.numbers,
            self.processes,
            self.config.patch_size,
            self.interrupted,
            self.config.log_images,
        )
        self.signal, self.problem = validation.signal, validation.problem
        if validation.results is None:
            return
        results = validation.results
        # Two replicas that drift apart would average gradients of two models and train neither.
        self.processes.check_equal("weights", fingerprint(state.model.parameters()))
        if not math.isfinite(results["loss"]):
            self.give_up(f"the weights are finite, and the validation loss is {results['loss']:g}")
        state.validated_step = end
        learning_rate = state.optimizer.param_groups[0]["lr"]
        if isinstance(state.lr_scheduler, ReduceLROnPlateau) and end % self.steps_per_epoch == 0:
            state.lr_scheduler.step(results["loss"])
        epoch = (end - 1) // self.steps_per_epoch
        row = {"epoch": epoch, "step": end, "learning_rate": learning_rate, "skipped_steps": state.faults.steps}
        row.update({f"train_{key}": value / state.epoch_count for key, value in state.epoch_sums.items()})
        row.update({f"val_{key}": value for key, value in results.items()})
        state.history.append(row)
        state.epoch_sums, state.epoch_count = {}, 0
        is_best = results["loss"] < state.best_loss
        self.log.scalars("val/", results, end)
        self.log.scalars("", {"learning_rate": learning_rate, "images_per_second": self.images_per_second()}, end)
        for index, picture in enumerate(validation.pictures):
            self.log.image(f"original_and_reconstruction/{index}", picture, end)
        self.save(best=is_best)
        self.log.metrics(state.history)
        self.log.json("summary.json", self.summary())
        if self.processes.first:
            show(
                f"epoch {epoch}  step {end}  lr {learning_rate:.3g}  train loss {row.get('train_loss', math.nan):.4f}  "
                f"val loss {results['loss']:.4f}  bpp {results['bpp_loss']:.4f} (estimate)  "
                f"PSNR {results['psnr']:.3f} dB  MS-SSIM {results['ms_ssim']:.5f}  "
                f"basis {results['basis_loss']:.5f}{'  best' if is_best else ''}"
            )

    def save(self, best: bool = False) -> None:
        """Writes the checkpoint; where that fails the training goes on, with the last one that could be written.

        Raises:
            TrainingDiverged: nobody could use it; nothing is written then.
        """
        state = self.state
        # Before the tables are made, which may never end.
        self.check_usable()
        before = state.best_loss
        if best:
            state.best_loss = state.history[-1]["val_loss"]
        # All processes take part: each has random numbers of its own.
        checkpoint = state.state_dict()
        error: OSError | None = None
        best_written = False
        if self.folder is not None and self.processes.first:
            try:
                # The best one first: killed in between, the run resumes before both and finds the best again.
                if best:
                    checkpoints.save(self.folder / checkpoints.BEST, checkpoint)
                    best_written = True
                checkpoints.save(self.folder / checkpoints.LAST, checkpoint)
                self.saved_step = state.step
            except OSError as caught:
                error = caught
                show(
                    f"step {state.step}: the checkpoint cannot be written to {self.folder} ({error.strerror}); the "
                    f"training goes on, the checkpoint there is of step {self.saved_step}",
                    file=sys.stderr,
                )
        self.saved_at = time.monotonic()
        self.not_saved, best_written = self.processes.gather((error, best_written))[0]
        if best and self.folder is not None and not best_written:
            # What the next epochs have to beat is what lies on the disk.
            state.best_loss = before

    def check_usable(self) -> None:
        """Gives the run up, on all processes, where on one of them a weight, table or optimizer is no good."""
        if problem := next((text for text in self.processes.gather(self.state.problem()) if text), ""):
            self.give_up(problem)

    def give_up(self, problem: str) -> NoReturn:
        step = self.state.step
        kept = "nothing was saved"
        if self.folder is not None and (self.folder / checkpoints.LAST).exists():
            kept = f"nothing of it is saved, {self.folder / checkpoints.LAST} is of step {self.saved_step}"
        raise TrainingDiverged(
            f"step {step}: {problem}; {kept}; start anew from an earlier checkpoint with --checkpoint and a smaller "
            "--learning-rate or --aux-learning-rate"
        )

    def summary(self) -> dict[str, Any]:
        return summarize(self.state, self.total_steps, self.images_per_second())

    def images_per_second(self) -> float:
        """Crops trained per second of this call, over all processes; with loading, without validation."""
        return self.crops_trained / self.seconds_trained if self.seconds_trained else 0.0

    def _shown(self, values: dict[str, float] | None, seconds: float) -> dict[str, str]:
        """Beside the progress bar: the losses, and the time left to the end of the run."""
        steps = max(self.state.step % self.steps_per_epoch or self.steps_per_epoch, 1) - self.batches.start
        left = tqdm.format_interval(seconds / steps * (self.total_steps - self.state.step))
        losses = {key.removesuffix("_loss"): f"{value:.4g}" for key, value in (values or {}).items()}
        return {**losses, "left": left}

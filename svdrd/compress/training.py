"""The training loop of ``svdrd finetune``: steps, validation, checkpoints, and a resume that goes on bit for bit."""

import argparse
import csv
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compressai
import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from compressai.ops import compute_padding
from compressai.optimizers import net_aux_optimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import svdrd
from svdrd.compress import checkpoints, metrics
from svdrd.compress.criterion import BasisRateDistortionLoss
from svdrd.compress.data import TrainingBatches
from svdrd.compress.errors import BadInput, TrainingDiverged

SCHEDULES = ("plateau", "constant", "cosine", "step")
NON_FINITE_STEPS_IN_A_ROW = 20
# Every CompressAI image codec halves its input six times at most.
STRIDE = 64
# A resumed run with other values of these would silently be neither the old run nor a new one.
FIXED_BY_RESUME = (
    "model", "seed", "batch_size", "crops_per_image", "patch_size",
    "learning_rate", "aux_learning_rate", "lr_schedule",
)  # fmt: skip


class Training:
    """One run: everything that a checkpoint holds, and the loop over it.

    The position of a run is its number of steps: order and crops of an epoch are functions of seed and epoch, so a
    checkpoint of any step continues as the uninterrupted run would have.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: CompressionModel,
        criterion: BasisRateDistortionLoss,
        train_loader: DataLoader[Tensor],
        batches: TrainingBatches,
        validation_loader: DataLoader[Tensor],
    ) -> None:
        self.arguments = arguments
        self.model = model
        self.criterion = criterion
        self.train_loader = train_loader
        self.batches = batches
        self.validation_loader = validation_loader
        self.steps_per_epoch = len(train_loader)
        self.total_steps = min(arguments.epochs * self.steps_per_epoch, arguments.steps or sys.maxsize)
        optimizers = net_aux_optimizer(
            model,
            {
                "net": {"type": "Adam", "lr": arguments.learning_rate},
                "aux": {"type": "Adam", "lr": arguments.aux_learning_rate},
            },
        )
        self.optimizer: Optimizer = optimizers["net"]
        self.aux_optimizer: Optimizer = optimizers["aux"]
        self.lr_scheduler = make_schedule(arguments.lr_schedule, self.optimizer, self.total_steps)
        self.step = 0
        self.validated_step = 0
        self.best_loss = math.inf
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.epoch_sums: dict[str, float] = {}
        self.epoch_count = 0
        self.history: list[dict[str, float]] = []

    def run(self, interrupted: list[int]) -> int:
        """Trains to the end, or until a signal's number appears in ``interrupted``; returns the exit code."""
        folder = Path(self.arguments.save_dir) if self.arguments.save else None
        writer = SummaryWriter(str(folder), purge_step=self.step) if folder else None
        try:
            while self.validated_step < self.total_steps and not interrupted:
                end = min((self.validated_step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.total_steps)
                self.train(end, writer, interrupted)
                results = None if interrupted else self.validate(interrupted)
                if results is not None:
                    self.finish_epoch(end, results, writer, folder)
            if interrupted and folder:
                checkpoints.save(folder / checkpoints.LAST, self.state())
        finally:
            if writer:
                writer.close()
        if not interrupted:
            return 0
        where = f"; go on with --resume {folder / checkpoints.LAST}" if folder else ""
        print(f"interrupted after step {self.step}{where}", file=sys.stderr)
        return 128 + interrupted[0]

    def train(self, end: int, writer: SummaryWriter | None, interrupted: list[int]) -> None:
        """Steps up to number ``end`` of the run, which lies in the present epoch."""
        if self.step == end:
            return
        self.model.train()
        # The control arm does not pay in every step for a number that validation reports anyway.
        self.criterion.monitor_basis = False
        epoch, position = divmod(self.step, self.steps_per_epoch)
        self.batches.epoch, self.batches.start = epoch, position
        with tqdm(total=end - self.step, desc=f"epoch {epoch}", disable=None, leave=False) as progress:
            for x in self.train_loader:
                values = self.train_step(x.to(self.arguments.device, non_blocking=True))
                self.step += 1
                if isinstance(self.lr_scheduler, LambdaLR):
                    self.lr_scheduler.step()
                if values is not None:
                    add_to(self.epoch_sums, values)
                    self.epoch_count += 1
                    progress.set_postfix({key.removesuffix("_loss"): f"{value:.4g}" for key, value in values.items()})
                    if writer and self.step % 10 == 0:
                        for key, value in values.items():
                            writer.add_scalar(f"train/{key}", value, self.step)
                progress.update()
                if self.step == end or interrupted:
                    break

    def train_step(self, x: Tensor) -> dict[str, float] | None:
        """One step of both optimizers; None, and nothing changed, if the loss or its gradient was not finite."""
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        losses = self.criterion(self.model(x), x)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)
        values = {key: value.item() for key, value in losses.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(norm.item())):
            self.count_skipped(values["loss"], norm.item())
            return None
        self.skipped_in_a_row = 0
        if self.arguments.clip_max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.arguments.clip_max_norm, norm)
        self.optimizer.step()
        aux_loss = self.model.aux_loss()
        aux_loss.backward()
        self.aux_optimizer.step()
        return {**values, "aux_loss": aux_loss.item()}

    def count_skipped(self, loss: float, norm: float) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        print(f"step {self.step + 1}: skipped, its loss is {loss:g} and its gradient norm {norm:g}", file=sys.stderr)
        if self.skipped_in_a_row >= NON_FINITE_STEPS_IN_A_ROW:
            raise TrainingDiverged(
                f"step {self.step + 1}: {self.skipped_in_a_row} steps in a row without a finite loss and gradient; "
                "start anew from the last checkpoint with --checkpoint and a smaller --learning-rate or --smooth 0.001"
            )

    @torch.no_grad()
    def validate(self, interrupted: list[int]) -> dict[str, float] | None:
        """Means over the validation images; None if interrupted.

        The model sees whole images, padded to its stride, and the criterion their patches, so that the basis loss is
        that of training. The rate is ``forward``'s estimate; ``svdrd evaluate`` does the real coding.
        """
        self.model.eval()
        self.criterion.monitor_basis = True
        sums: dict[str, float] = {}
        images = 0
        for x in self.validation_loader:
            if interrupted:
                return None
            x = x.to(self.arguments.device)
            pad, unpad = compute_padding(x.shape[-2], x.shape[-1], min_div=STRIDE)
            output = self.model(F.pad(x, pad))
            x_hat = F.pad(output["x_hat"], unpad)
            patches = tiles(x_hat, self.arguments.patch_size)
            losses = self.criterion({**output, "x_hat": patches}, tiles(x, self.arguments.patch_size))
            values = {key: value.item() for key, value in losses.items()}
            values["psnr"] = metrics.psnr(x_hat, x).mean().item()
            values["ms_ssim"] = metrics.ms_ssim_8bit(x_hat, x).mean().item()
            add_to(sums, values, weight=len(x))
            images += len(x)
        return {key: value / images for key, value in sums.items()}

    def finish_epoch(
        self, end: int, results: dict[str, float], writer: SummaryWriter | None, folder: Path | None
    ) -> None:
        """Schedule, metrics, checkpoints."""
        self.validated_step = end
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(self.lr_scheduler, ReduceLROnPlateau) and end % self.steps_per_epoch == 0:
            self.lr_scheduler.step(results["loss"])
        epoch = (end - 1) // self.steps_per_epoch
        row = {"epoch": epoch, "step": end, "learning_rate": learning_rate, "skipped_steps": self.skipped_steps}
        row.update({f"train_{key}": value / self.epoch_count for key, value in self.epoch_sums.items()})
        row.update({f"val_{key}": value for key, value in results.items()})
        self.history.append(row)
        self.epoch_sums, self.epoch_count = {}, 0
        is_best = results["loss"] < self.best_loss
        self.best_loss = min(results["loss"], self.best_loss)
        print(
            f"epoch {epoch}  step {end}  lr {learning_rate:.3g}  train loss {row.get('train_loss', math.nan):.4f}  "
            f"val loss {results['loss']:.4f}  bpp {results['bpp_loss']:.4f} (estimate)  PSNR {results['psnr']:.3f} dB  "
            f"MS-SSIM {results['ms_ssim']:.5f}  basis {results['basis_loss']:.5f}{'  best' if is_best else ''}",
            flush=True,
        )
        if writer:
            for key, value in results.items():
                writer.add_scalar(f"val/{key}", value, end)
            writer.add_scalar("learning_rate", learning_rate, end)
        if folder:
            state = self.state()
            checkpoints.save(folder / checkpoints.LAST, state)
            if is_best:
                checkpoints.save(folder / checkpoints.BEST, state)
            write_metrics(folder / "metrics.csv", self.history)

    def state(self) -> dict[str, Any]:
        """CompressAI's checkpoint layout, and what it takes to go on bit for bit."""
        with torch.no_grad():
            # Only force=True replaces CDFs that are there already; training itself does not read them.
            self.model.update(force=True)
        arguments = {key: value for key, value in vars(self.arguments).items() if key != "resume"}
        arguments["patch_size"] = list(self.arguments.patch_size)
        cuda_rng = torch.cuda.get_rng_state_all() if self.arguments.device.startswith("cuda") else []
        return {
            "epoch": max(self.step - 1, 0) // self.steps_per_epoch,
            "state_dict": self.model.state_dict(),
            "loss": self.history[-1]["val_loss"] if self.history else math.inf,
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "step": self.step,
            "validated_step": self.validated_step,
            "steps_per_epoch": self.steps_per_epoch,
            "best_loss": self.best_loss,
            "skipped_steps": self.skipped_steps,
            "epoch_sums": self.epoch_sums,
            "epoch_count": self.epoch_count,
            "metrics": self.history,
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda_rng},
            "arguments": arguments,
            "versions": {
                # torch.__version__ is an object of torch's own, which weights_only=True refuses to load.
                "svdrd": svdrd.__version__,
                "torch": str(torch.__version__),
                "compressai": compressai.__version__,
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``; the model has been loaded from it already."""
        resume = f"--resume {self.arguments.resume}"
        for name in FIXED_BY_RESUME:
            before, now = state["arguments"][name], getattr(self.arguments, name)
            if (list(now) if name == "patch_size" else now) != before:
                raise BadInput(
                    f"{resume}: the run has {name} {before}, given is {now}; leave it out, or start a new run from "
                    "these weights with --checkpoint"
                )
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise BadInput(
                f"{resume}: the run has {state['steps_per_epoch']} steps an epoch, with these images there are "
                f"{self.steps_per_epoch}; resume with the same images, or start a new run with --checkpoint"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.step = state["step"]
        self.validated_step = state["validated_step"]
        self.best_loss = state["best_loss"]
        self.skipped_steps = state["skipped_steps"]
        self.epoch_sums = state["epoch_sums"]
        self.epoch_count = state["epoch_count"]
        self.history = state["metrics"]
        torch.set_rng_state(state["rng"]["cpu"])
        if self.arguments.device.startswith("cuda") and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])


def make_schedule(name: str, optimizer: Optimizer, total_steps: int) -> LambdaLR | ReduceLROnPlateau:
    """``plateau`` is stepped after each epoch, the others after each step; those are functions of the step alone."""
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, "min")
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "cosine": lambda step: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0))),
        "step": lambda step: 1.0 if step < 0.8 * total_steps else 0.1,
    }
    return LambdaLR(optimizer, factors[name])


def tiles(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """(N, C, H, W) to (N * tiles, C, h, w), for H and W that are multiples of ``patch_size = (h, w)``."""
    batch, channels, height, width = x.shape
    h, w = patch_size
    x = x.reshape(batch, channels, height // h, h, width // w, w)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)


def add_to(sums: dict[str, float], values: dict[str, float], weight: int = 1) -> None:
    for key, value in values.items():
        sums[key] = sums.get(key, 0.0) + weight * value


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in history for key in row))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(history)
    temporary.replace(path)


@contextmanager
def interrupt_flag() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM append their number; a second signal acts as it would have without us."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        for handled, handler in before.items():
            signal.signal(handled, handler)

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

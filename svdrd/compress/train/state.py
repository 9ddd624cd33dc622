"""The state of a run: all that a checkpoint holds, so that a resumed run goes on bit for bit."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from svdrd.compress.codecs.soundness import problem_of_codec, problem_of_optimizer
from svdrd.compress.compressai import CompressionModel
from svdrd.compress.errors import BadInput
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.train.config import TrainConfig
from svdrd.compress.train.distributed import Processes
from svdrd.compress.train.faults import Faults
from svdrd.compress.train.noise import BatchNoise
from svdrd.compress.versions import versions

# A resumed run with other values of these would silently be neither the old run nor a new one.
FIXED_BY_RESUME = (
    "model", "seed", "batch_size", "crops_per_image", "patch_size", "freeze",
    "learning_rate", "aux_learning_rate", "lr_schedule", "precision",
)  # fmt: skip


@dataclass
class RunState:
    """What changes in a run, after what it is a run of.

    The position of a run is its number of steps: order and crops of an epoch are functions of seed and epoch, so a
    checkpoint of any step continues as the uninterrupted run would have.

    ``images`` are those of the training. ``validated_step`` is the last step that was validated, ``history`` has a row
    for each validation, ``epoch_sums`` and ``epoch_count`` are of the steps since; ``damaged`` names images that could
    not be decoded.
    """

    config: TrainConfig
    processes: Processes
    images: ImageFolder
    steps_per_epoch: int

    model: CompressionModel
    optimizer: Optimizer
    aux_optimizer: Optimizer
    lr_scheduler: LambdaLR | ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    noise: BatchNoise

    step: int = 0
    validated_step: int = 0
    best_loss: float = math.inf
    faults: Faults = field(default_factory=Faults)
    damaged: set[str] = field(default_factory=set)
    epoch_sums: dict[str, float] = field(default_factory=dict)
    epoch_count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """CompressAI's checkpoint layout, and what it takes to go on bit for bit; all processes call it together."""
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
            "scaler": self.scaler.state_dict(),
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
            "noise": self.noise.generator.get_state(),
            "rng": self.processes.gather(rng),
            "arguments": self.config.saved(),
            "versions": versions(),
        }

    def problem(self) -> str:
        """Why a checkpoint of this state could not be used; "" where it can."""
        return problem_of_codec(self.model) or self._problem_of_optimizers()

    def _problem_of_optimizers(self) -> str:
        return problem_of_optimizer(self.model, self.optimizer, "optimizer") or problem_of_optimizer(
            self.model, self.aux_optimizer, "optimizer of the quantiles"
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from :meth:`state_dict`; the model has been loaded from it already.

        Raises:
            BadInput: of a run with other settings or images, of another version of svdrd, or with optimizers whose
                next step would make weights that are not finite.
        """
        resume = f"--resume {self.config.resume}"
        try:
            self._check_same_run(resume, state)
            self._load(state)
        except KeyError as error:
            raise BadInput(
                f"{resume}: has no {error}, it is of another version of svdrd ({state.get('versions')}); start a new "
                "run from its weights with --checkpoint"
            ) from error
        if problem := self._problem_of_optimizers():
            raise BadInput(f"{resume}: {problem}; start a new run from its weights with --checkpoint")

    def _check_same_run(self, resume: str, state: dict[str, Any]) -> None:
        settings = self.config.saved()
        for name in FIXED_BY_RESUME:
            before, now = state["arguments"][name], settings[name]
            if now != before:
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

    def _load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.validated_step = state["validated_step"]
        # Versions before this one kept a NaN, which nothing is better than.
        self.best_loss = math.inf if math.isnan(state["best_loss"]) else state["best_loss"]
        self.faults = Faults(**state["faults"])
        self.damaged = set(state["damaged_images"])
        self.epoch_sums = state["epoch_sums"]
        self.epoch_count = state["epoch_count"]
        self.history = state["metrics"]
        self.noise.generator.set_state(state["noise"])
        # With another number of processes nothing is bit for bit any more, and any state will do.
        rng = state["rng"][self.processes.rank % len(state["rng"])]
        torch.set_rng_state(rng["cpu"])
        if self.processes.device.type == "cuda" and rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.processes.device)

"""What a command turns into one line on stderr and an exit code."""


class BadInput(ValueError):
    """An argument that cannot work (exit code 2): names it, its value and what would work, on one line."""


class TrainingStopped(RuntimeError):
    """Training cannot go on (exit code 1): says at which step, why, and how to continue, on one line."""


class TrainingDiverged(TrainingStopped):
    """Too many steps in a row without a finite loss and gradient."""

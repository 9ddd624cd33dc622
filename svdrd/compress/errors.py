"""What a command turns into one line on stderr and an exit code."""


class BadInput(ValueError):
    """An argument that cannot work (exit code 2): names it, its value and what would work, on one line."""


class Stopped(RuntimeError):
    """A command cannot go on (exit code 1): says where, why, and how to continue, on one line."""


class TrainingStopped(Stopped):
    """Training cannot go on for a reason outside of it; what has been trained is saved, or the message says what is."""


class TrainingDiverged(TrainingStopped):
    """Too many steps in a row without a finite loss and gradient, or a state that no checkpoint may have."""

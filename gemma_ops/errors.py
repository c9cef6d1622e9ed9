"""Exceptions for everything that can go wrong for a reason a person can act on.

    OpsError                exit 1   something failed; `fix` says what to do
    ├── ConfigError         exit 2   the configuration or the command line is wrong
    ├── DataError           exit 3   the data is wrong: rows, files, encodings
    ├── ModelError          exit 4   a model folder is incomplete or can't be used this way
    ├── MachineError        exit 5   disk, memory, device, a missing optional package
    ├── ServiceError        exit 6   a server did not answer (MLflow, the Hub)
    ├── DriftError          exit 7   a finished step no longer matches its settings or inputs
    ├── BusyError           exit 8   another process holds this run folder
    ├── GateError           exit 9   the evidence does not allow it: a gate failed, a digest differs
    ├── BudgetError         exit 10  the next request could pass the cap in dollars, or its price is not known
    └── BoundaryError       exit 11  this data, or any data, may not leave the machine this way

The command line prints `error: <what>` and `try: <fix>` and leaves with the exit code. Every other exception keeps
its traceback, because it is a defect of ours. `Ctrl-C` leaves with 130.

To add one: subclass, set `exit_code`, extend this list. A new class is worth it only when a caller reacts differently.
"""

from __future__ import annotations


class OpsError(Exception):
    """A failure with a way out. `what` says what happened, `fix` says what the reader can do about it."""

    exit_code = 1

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\ntry: {self.fix}"


class ConfigError(OpsError):
    exit_code = 2


class DataError(OpsError):
    exit_code = 3


class ModelError(OpsError):
    exit_code = 4


class MachineError(OpsError):
    exit_code = 5


class ServiceError(OpsError):
    exit_code = 6


class DriftError(OpsError):
    exit_code = 7


class BusyError(OpsError):
    exit_code = 8


class GateError(OpsError):
    exit_code = 9


class BudgetError(OpsError):
    exit_code = 10


class BoundaryError(OpsError):
    exit_code = 11

"""The command line. Imports nothing heavy: `--help` of every verb answers at once.

Results go to stdout (`--json` for machines), progress and errors to stderr. Whatever can be a configuration key is one:
`--set train.epochs=2` instead of a flag of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gemma_ops import __version__
from gemma_ops.cli import (
    bench_verbs,
    cost_verbs,
    deploy_verbs,
    dev_verbs,
    interrupts,
    judge_verbs,
    launch_verbs,
    look_verbs,
    model_verbs,
    route_verbs,
    run_verbs,
    serve_verbs,
    synth_verbs,
    task_verbs,
    tool_verbs,
)
from gemma_ops.cli.exits import INTERRUPTED
from gemma_ops.cli.options import own_process
from gemma_ops.errors import OpsError

app = typer.Typer(
    name="gemma-ops",
    help="Fine-tune, quantize, evaluate, version and promote Gemma 4 on your own machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(run_verbs.app)
app.add_typer(model_verbs.app)
app.add_typer(serve_verbs.app)
app.add_typer(deploy_verbs.app)
app.add_typer(route_verbs.app)
app.add_typer(look_verbs.app)
app.add_typer(bench_verbs.app)
app.add_typer(cost_verbs.app)
app.add_typer(dev_verbs.app)
app.add_typer(synth_verbs.app)
app.add_typer(task_verbs.app)
app.add_typer(judge_verbs.app)
app.add_typer(launch_verbs.app)
app.add_typer(tool_verbs.app)


def _version(value: bool) -> None:
    if value:
        print(f"gemma-ops {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: turns what a person can act on into two lines and an exit code; anything else keeps its
    traceback."""
    _quiet()
    own_process()
    interrupts.install_interrupts()
    code = guarded(app)
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that wait for an answer would be waited for
    sys.exit(code)


def guarded(command: Callable[..., Any]) -> int:
    """Run a Typer application, and return the exit code."""
    usage_error: type[Exception] = next(
        kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
    )
    try:
        result = command(standalone_mode=False)
    except OpsError as error:
        from gemma_ops.cli.console import print_error

        print_error(error.what, error.fix)
        return error.exit_code
    except typer.Abort:
        return _interrupted()
    except usage_error as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if result == INTERRUPTED:  # how Typer hands a KeyboardInterrupt on
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    from gemma_ops.cli.console import print_error

    print_error("interrupted", "run the same command again: finished steps are kept and the interrupted one goes on")
    return INTERRUPTED


def _quiet() -> None:
    """Silence progress bars, notices and telemetry of libraries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

"""The command line: parse, call, print. Heavy things are imported when a command runs."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import typer

from velollm.discover import load_modules
from velollm.errors import EXIT_FAILED, EXIT_USAGE, VeloError

_HELP = "The autopilot for local LLM inference: finds better settings, proves them, applies them, undoes them."


def make_app() -> typer.Typer:
    """The application with every command of this package, in name order."""
    app = typer.Typer(
        name="velollm",
        help=_HELP,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_root)
    for module in load_modules(__name__):
        if (command := getattr(module, "command", None)) is not None:
            name = module.__name__.rpartition(".")[2].rstrip("_")
            settings: dict[str, Any] = getattr(module, "SETTINGS", {})
            app.command(name=name, **settings)(_loud(command))
    return app


def _loud(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with Ctrl-C as an error: Typer would end it without a word."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise _interrupted() from interrupt

    return call


def _interrupted() -> VeloError:
    return VeloError("interrupted", "nothing was left running; `velollm undo` takes back what was applied")


def _show_version(wanted: bool) -> None:
    if wanted:
        from velollm import __version__

        print(f"velollm {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
    ),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line and leave with its exit code; no traceback for anything a user can cause."""
    signal.signal(signal.SIGTERM, _on_terminate)
    hangup = getattr(signal, "SIGHUP", None)
    # Under `nohup` a closed terminal is to be ignored.
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL:
        signal.signal(hangup, _on_terminate)
    sys.exit(run_app())


def _on_terminate(_number: int, _frame: FrameType | None) -> None:
    # Unwinds like Ctrl-C, so that trial servers are reaped.
    raise KeyboardInterrupt


def run_app(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code; an empty one asks for help."""
    try:
        result = make_app()(args=(sys.argv[1:] if argv is None else argv) or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except VeloError as error:
        return _complain(error)
    except (KeyboardInterrupt, typer.Abort):
        return _complain(_interrupted())
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILED
    except Exception as error:
        if (message := getattr(error, "format_message", None)) is None:
            raise
        return _complain(VeloError(message(), _usage_hint(error), EXIT_USAGE))
    return result if isinstance(result, int) else 0


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "velollm")
    return f"try `{path} --help`"


def _complain(error: VeloError) -> int:
    print(f"Error: {_one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"Hint: {_one_line(error.hint)}", file=sys.stderr)
    return error.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""The command line: `carrara generate`, `info`, `health`, `version`, and what the services add."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from carrara.cli import generate, health, info, version
from carrara.cli.plug_ins import PlugInGroup
from carrara.exceptions import (
    CarraraError,
    ContractError,
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StageUnavailableError,
)
from carrara.runtimes import SERVICES_COMMAND

EXIT_CODES: dict[type[CarraraError], int] = {
    InvalidArgumentError: 2,
    ContractError: 3,
    StageUnavailableError: 4,
    DeadlineError: 5,
    ResourceExhaustedError: 6,
}
"""Exit status by exception; 130 after Ctrl-C, 1 for anything else."""

app = typer.Typer(
    cls=PlugInGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-to-image models, served stage by stage.",
)
app.command("generate")(generate.generate)
app.command("info")(info.info)
app.command("health")(health.health)
app.command("version")(version.version)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; whatever goes wrong becomes one line on stderr.

    Args:
        arguments: As of the command line, without the program's name; None for the process's own.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        status = command.main(
            args=arguments or ["--help"], prog_name="carrara", standalone_mode=False
        )
    except KeyboardInterrupt:
        return 130
    except typer.TyperException as error:
        return _failed(error.format_message(), error.exit_code)
    except CarraraError as error:
        return _failed(str(error), EXIT_CODES.get(type(error), 1))
    except ModuleNotFoundError as error:
        return _failed(f"this command needs {error.name}: {SERVICES_COMMAND}", 1)
    except Exception as error:
        ours = type(error).__module__.startswith("carrara")
        return _failed(str(error) if ours else f"{type(error).__name__}: {error}", 1)
    return status if isinstance(status, int) else 0


def main() -> None:
    """The entry point of `carrara`."""
    sys.exit(run())


def _failed(message: str, status: int) -> int:
    typer.echo(f"carrara: {' '.join(message.split())}", err=True)
    return status

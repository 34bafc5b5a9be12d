"""Files that `--plot` writes: what could not be drawn is refused before the work is done."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from carrara.exceptions import MissingExtraError
from carrara_models.errors import BadFieldError

PLOT_SUFFIXES = (".pdf", ".png", ".svg")


def check_plot_file(file: Path, *, drawn_by: str) -> None:
    """Refuses a file that could not be drawn.

    Args:
        drawn_by: The module that draws it, which needs matplotlib.

    Raises:
        BadFieldError: The file is of no known kind, or its folder is missing.
        MissingExtraError: matplotlib is missing.
    """
    try:
        import_module(drawn_by)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--plot needs {error.name}: pip install 'carrara[train]'"
        ) from error
    if file.suffix.lower() not in PLOT_SUFFIXES:
        raise BadFieldError("plot", str(file), f"a file that ends in {', '.join(PLOT_SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise BadFieldError("plot", str(file), "a file in a folder that exists")

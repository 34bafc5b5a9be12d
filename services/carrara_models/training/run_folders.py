"""What earlier runs left, for those that are trained behind them."""

from pathlib import Path
from typing import Any, TypeVar

Component = TypeVar("Component")


def component_of(folder: Path, name: str) -> Path:
    """The sub-folder of a component; never anything but a folder on this machine.

    Raises:
        FileNotFoundError: `folder` does not hold it.
    """
    component = folder / name
    if not component.is_dir():
        raise FileNotFoundError(f"{folder} holds no {name}/: name the folder of a run that made it")
    return component


def load_component(kind: type[Component], folder: Path, name: str) -> Component:
    """A component of diffusers or transformers, in the dtype that it was saved in.

    Raises:
        FileNotFoundError: `folder` does not hold it.
    """
    loadable: Any = kind
    return loadable.from_pretrained(component_of(folder, name))

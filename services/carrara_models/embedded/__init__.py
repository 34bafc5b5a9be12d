"""The small checkpoints that ship with the package, each a folder with a model card.

One is a folder in diffusers layout, or a cascade folder with several.
"""

from pathlib import Path

from carrara_models.cascade_folders import CASCADE


def embedded_names() -> tuple[str, ...]:
    """The names of the checkpoints that ship with the package, sorted."""
    here = Path(__file__).parent
    files = (path for name in ("model_index.json", CASCADE) for path in here.glob(f"*/{name}"))
    return tuple(sorted({path.parent.name for path in files}))


def embedded_folder(name: str) -> Path:
    """The folder of the checkpoint called `name`.

    Raises:
        KeyError: There is none of that name.
    """
    names = embedded_names()
    if name not in names:
        raise KeyError(f"no embedded checkpoint {name!r}; there are: {', '.join(names) or 'none'}")
    return Path(__file__).parent / name

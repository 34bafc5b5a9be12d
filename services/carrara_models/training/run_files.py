"""A run's recipe as a TOML file: read, changed by `--set`, written beside what it trained.

    part = "generator"
    text_encoder = "runs/text-encoder"

    [data]
    location = "folder:pictures"

    [loop]
    steps = 9000

What a file leaves out has the part's default. Unknown names are refused with those that are known.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from carrara_models.training.data.settings import DRAWN_WORLD, DataSettings, settings_of_kind
from carrara_models.training.errors import RecipeError

Settings = TypeVar("Settings")
RUN_FILE = "run.toml"
PART = "part"


def read_recipe(file: Path, *, part: str) -> dict[str, Any]:
    """The settings that a file gives, yet unchecked.

    Args:
        file: A recipe, or the folder of a run.
        part: Whose it must be.

    Raises:
        RecipeError: It cannot be read, or is another part's.
    """
    content = _read(file)
    found = content.pop(PART, None)
    if found != part:
        raise RecipeError(f"{file}: {PART} is {found!r}; this command trains {part!r}")
    return content


def part_of(file: Path) -> str:
    """Which part a recipe, or the run in a folder, trains.

    Raises:
        RecipeError: It cannot be read, or does not say.
    """
    found = _read(file).get(PART)
    if not isinstance(found, str):
        raise RecipeError(f"{file} does not say which {PART} it trains")
    return found


def change(content: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The settings after changes such as "loop.steps=100"; a value is TOML, or else a plain text.

    Raises:
        RecipeError: One is no assignment.
    """
    changed = _copy(content)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise RecipeError(f"{assignment!r} is no assignment such as loop.steps=100")
        *tables, last = name.strip().split(".")
        table = changed
        for key in tables:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{name.strip()}: {key} is no table")
        table[last] = _value(text.strip())
    return changed


def build_settings(kind: type[Settings], content: Mapping[str, Any]) -> Settings:
    """Settings of a kind, a dataclass, from those given and its defaults.

    Raises:
        RecipeError: A name is unknown, or a value is not allowed.
    """
    defaults = asdict(kind())  # type: ignore[call-overload]
    whole = _merge(kind, defaults, content, prefix="")
    try:
        return TypeAdapter(kind).validate_python(whole)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{name}: {first['input']!r}: {first['msg']}") from error


def write_recipe(file: Path, settings: Any, *, part: str) -> None:
    """Writes settings whole, so that the file repeats the run whatever later defaults are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_toml(settings, part=part), encoding="utf-8")


def to_toml(settings: Any, *, part: str) -> str:
    """Settings as the text of a recipe; of the data, those that mean something to their kind."""
    content = {PART: part, **_plain(asdict(settings))}
    kept = settings_of_kind(settings.data)
    content["data"] = {name: value for name, value in content["data"].items() if name in kept}
    return tomli_w.dumps(content)


def _read(file: Path) -> dict[str, Any]:
    if file.is_dir():
        file = file / RUN_FILE
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(content: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in content.items()}


def _merge(
    kind: Any, defaults: Mapping[str, Any], content: Mapping[str, Any], *, prefix: str
) -> dict[str, Any]:
    known = [field.name for field in fields(kind)]
    hints = get_type_hints(kind)
    merged = dict(defaults)
    for name, value in content.items():
        if name not in known:
            raise RecipeError(f"{prefix}{name} is unknown; known are {', '.join(known)}")
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{prefix}{name}: {value!r} is no table")
            base = defaults[name]
            if hints[name] is DataSettings and value.get("location", DRAWN_WORLD) != DRAWN_WORLD:
                base = asdict(DataSettings())  # a part's own defaults are for the drawn world
            value = _merge(hints[name], base, value, prefix=f"{prefix}{name}.")
        merged[name] = value
    return merged


def _plain(value: Any) -> Any:
    """What TOML knows: no None, no paths."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

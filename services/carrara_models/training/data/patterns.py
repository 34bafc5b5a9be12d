"""Names of files by pattern: braces as in `{00000..00012}.tar`, wildcards as in `*.tar`."""

import glob
import re
from pathlib import Path

MAX_FILES = 1_000_000
BRACES = re.compile(r"\{([^{}]*)\}")


def match_files(pattern: str) -> list[Path]:
    """The files that a pattern names, in order: braces as they count, wildcards by name.

    Raises:
        FileNotFoundError: A name, or a name with wildcards, has no file.
        ValueError: The pattern is a URL or a command, has braces that are no range or choice, or
            names more than `MAX_FILES` files.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"{pattern}: only local files can be read")
    files: list[Path] = []
    for name in expand_braces(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        missing = [file for file in found if not Path(file).is_file()]
        if missing or not found:
            raise FileNotFoundError(f"no file {(missing or [name])[0]}")
        files += map(Path, found)
    return files


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for: `{08..10}` counts, `{a,b}` lists.

    Raises:
        ValueError: Braces hold neither, or the names are more than `MAX_FILES`.
    """
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], expand_braces(pattern[match.end() :])
    choices = _choices(match[1])
    if len(choices) * len(after) > MAX_FILES:
        raise ValueError(f"{pattern} names more than {MAX_FILES} files")
    return [before + choice + rest for choice in choices for rest in after]


def _choices(braced: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", braced):
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MAX_FILES:
            raise ValueError(f"{{{braced}}} counts down, or to more than {MAX_FILES}")
        digits = len(span[1])
        return [f"{number:0{digits}d}" for number in range(first, last + 1)]
    if "," not in braced:
        raise ValueError(f"{{{braced}}} is neither a range such as {{00..12}} nor a choice")
    return braced.split(",")

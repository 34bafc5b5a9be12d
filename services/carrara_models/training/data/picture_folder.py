"""Examples from a folder of pictures: captions beside them, or in a metadata file.

`a.png` has its caption in `a.txt` or `a.caption`, or in the row of a `metadata.jsonl` or
`metadata.csv` whose `file_name` names it, as the `imagefolder` of Hugging Face's datasets has it.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from carrara_models.training.data.bounds import Bound, within
from carrara_models.training.data.examples import PictureSource
from carrara_models.training.data.order import ListOrder
from carrara_models.training.data.pictures import Framing
from carrara_models.training.data.records import (
    MAX_TEXT_BYTES,
    DataError,
    Record,
    caption_from,
    captions_in,
    read_picture_file,
)

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

Row = Mapping[str, object]


def open_folder(
    folder: Path,
    *,
    framing: Framing,
    seed: int,
    caption_column: str = "text",
    bounds: Sequence[Bound] = (),
    captions_required: bool = True,
) -> PictureSource[Path]:
    """Lists the pictures below `folder`; files and folders whose name begins with a dot are hidden.

    Args:
        folder: Where the pictures are; metadata files may stand in any folder below it too.
        framing: The size of the pixels, and what is skipped.
        seed: Of the order and of all that is drawn.
        caption_column: The column of a metadata file that holds captions, each a text or a list
            of them. They go before a text file's; a picture may have several rows.
        bounds: What the rows have to keep; with bounds, a picture without a row is left out.
        captions_required: Skips pictures without a caption; otherwise theirs is empty.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: It holds no picture, or none within the bounds, or a metadata file is malformed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    pictures: set[Path] = set()
    rows: dict[Path, list[Row]] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name in METADATA_NAMES:
                for picture, row in _read_rows(path):
                    rows.setdefault(picture, []).append(row)
            elif not name.startswith(".") and path.suffix.lower() in PICTURE_SUFFIXES:
                pictures.add(path)
    pictures |= rows.keys()
    if not pictures:
        raise DataError(f"{folder} holds no picture: no {', '.join(sorted(PICTURE_SUFFIXES))}")
    captions: dict[Path, tuple[str, ...]] = {}
    for path in sorted(pictures):
        kept = [row for row in rows.get(path, [{}]) if within(bounds, row)]
        if kept:
            captions[path] = captions_in([row.get(caption_column) for row in kept])
    if not captions:
        wanted = ", ".join(map(str, bounds))
        raise DataError(f"of {len(pictures)} pictures in {folder} none keeps the bounds {wanted}")

    def load(path: Path) -> Record:
        return Record(read_picture_file(path), captions[path] or _caption_beside(path))

    return PictureSource(
        ListOrder(list(captions), seed=seed),
        load,
        framing=framing,
        seed=seed,
        captions_required=captions_required,
    )


def _caption_beside(picture: Path) -> tuple[str, ...]:
    for suffix in CAPTION_SUFFIXES:
        try:
            with picture.with_suffix(suffix).open("rb") as file:
                return caption_from(file.read(MAX_TEXT_BYTES + 1))
        except OSError:
            continue
    return ()


def _read_rows(metadata: Path) -> Iterator[tuple[Path, Row]]:
    """The rows of a metadata file, each after the path of the picture that it is about."""
    lines = _json_lines if metadata.suffix == ".jsonl" else csv.DictReader
    done = 0
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            for row in lines(file):
                yield metadata.parent / _name_in(row), row
                done += 1
    except (ValueError, csv.Error) as error:  # what is not UTF-8 or JSON raises a ValueError too
        raise DataError(f"{metadata}, row {done + 1}: {error}") from None


def _name_in(row: object) -> str:
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("no file_name")
    # Lexically: a folder may well link to pictures elsewhere.
    normal = os.path.normpath(name)
    if os.path.isabs(normal) or normal in (".", "..") or normal.startswith("../"):
        raise ValueError(f"{name} lies outside the folder")
    return normal


def _json_lines(file: TextIO) -> Iterator[object]:
    return (json.loads(line) for line in file if line.strip())

"""Examples from a data set of Hugging Face's `datasets` on disk: saved, or as parquet or arrow.

Nothing is looked up on a hub. Arrow is memory-mapped as it is; parquet, which has no cheap way to
one row, is first converted into the library's cache.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_from_disk

from carrara_models.training.data.bounds import Bound
from carrara_models.training.data.examples import PictureSource
from carrara_models.training.data.order import ListOrder
from carrara_models.training.data.patterns import match_files
from carrara_models.training.data.pictures import Framing
from carrara_models.training.data.records import (
    MAX_PICTURE_BYTES,
    DataError,
    Reason,
    Record,
    SkipError,
    captions_in,
    read_picture_file,
)


def open_saved_dataset(
    location: str,
    *,
    framing: Framing,
    seed: int,
    split: str | None = None,
    picture_column: str = "image",
    caption_column: str = "text",
    bounds: Sequence[Bound] = (),
    captions_required: bool = True,
) -> PictureSource[int]:
    """Opens the data set; reads of it only the columns that have bounds.

    Args:
        location: A folder that `save_to_disk` wrote, or names of `.parquet` or `.arrow` files, with
            `{00000..00012}`, `{a,b}`, `*` and `?`.
        framing: The size of the pixels, and what is skipped.
        seed: Of the order and of all that is drawn.
        split: Which split of a folder that holds several.
        picture_column: Pictures as the library's `Image`, or the bytes of their files.
        caption_column: Captions, each a text or a list of them.
        bounds: What a row's numbers have to keep.
        captions_required: Skips pictures without a caption; otherwise theirs is empty.

    Raises:
        FileNotFoundError: There is no such folder or file, or it is no data set.
        DataError: A split or column is missing, or no row keeps the bounds.
    """
    dataset = _open(location, split)
    captions = [caption_column] if captions_required else []
    for column in (picture_column, *captions, *(bound.column for bound in bounds)):
        if column not in dataset.column_names:
            raise DataError(f"{location} has no column {column}, but {dataset.column_names}")
    rows = np.flatnonzero(_kept(dataset, bounds))
    if not len(rows):
        wanted = ", ".join(map(str, bounds)) or "none"
        raise DataError(f"{location}: of {len(dataset)} rows none keeps the bounds: {wanted}")
    columns = {picture_column, caption_column} & set(dataset.column_names)
    pictures = dataset.select_columns(sorted(columns))
    pictures = pictures.cast_column(picture_column, Image(decode=False))

    def load(row: int) -> Record:
        values = pictures[int(row)]
        captions = captions_in(values.get(caption_column))
        return Record(_stored_picture(values[picture_column]), captions)

    return PictureSource(
        ListOrder(rows, seed=seed),
        load,
        framing=framing,
        seed=seed,
        captions_required=captions_required,
    )


def _open(location: str, split: str | None) -> Dataset:
    if not Path(location).is_dir():
        files = match_files(location)
        suffixes = {file.suffix for file in files}
        if suffixes == {".arrow"}:
            return concatenate_datasets([Dataset.from_file(str(file)) for file in files])
        if suffixes == {".parquet"}:
            return Dataset.from_parquet([str(file) for file in files])
        raise ValueError(f"{location} names neither .parquet nor .arrow files alone")
    dataset = load_from_disk(location)
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{location} has the splits {sorted(dataset)}, not {split}")
        return dataset[split]
    if split is not None:
        raise DataError(f"{location} is a single split; {split} cannot be chosen")
    return dataset


def _kept(dataset: Dataset, bounds: Sequence[Bound]) -> np.ndarray:
    """Which rows keep all bounds; a null or NaN keeps none."""
    kept = np.ones(len(dataset), dtype=bool)
    for bound in bounds:
        column = dataset.select_columns([bound.column]).with_format("arrow")[:][bound.column]
        try:
            values = column.cast("float64").to_numpy()
        except (ValueError, NotImplementedError) as error:  # which pyarrow's errors are
            raise DataError(f"column {bound.column} holds no numbers: {error}") from None
        kept &= (values >= bound.minimum) & (values <= bound.maximum)
    return kept


def _stored_picture(value: dict[str, object] | None) -> bytes:
    stored = value or {}
    if isinstance(stored.get("bytes"), bytes):
        if len(stored["bytes"]) > MAX_PICTURE_BYTES:
            raise SkipError(Reason.TOO_MANY_BYTES)
        return stored["bytes"]
    if stored.get("path"):
        return read_picture_file(Path(stored["path"]))
    raise SkipError(Reason.NO_PICTURE)

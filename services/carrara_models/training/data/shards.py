"""Examples from tar shards in WebDataset's layout, as LAION's and img2dataset's sets have it.

Members that share a name up to its first dot are one sample: a `.jpg`, `.jpeg`, `.png` or `.webp`,
its caption as `.txt`, its metadata as `.json`. The `webdataset` library is not used: it reads
every byte of a shard to get to a sample, while the headers of its members are enough to know where
each lies. So a worker reads only the pictures of its own steps, and a resumed run none of those it
has seen. No member is unpickled or unpacked; a sample with a pickled one is skipped.
"""

import json
import logging
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from carrara_models.training.data.bounds import Bound, within
from carrara_models.training.data.examples import PictureSource
from carrara_models.training.data.order import ShardOrder
from carrara_models.training.data.patterns import match_files
from carrara_models.training.data.pictures import Framing
from carrara_models.training.data.records import (
    MAX_TEXT_BYTES,
    Reason,
    Record,
    SkipError,
    caption_from,
    captions_in,
    read_picture,
)

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PICKLED_EXTENSIONS = frozenset({"pickle", "pkl", "pyd", "pth", "pt", "ckpt", "joblib", "dill"})
DEFAULT_WINDOW = 10_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Where the members of a sample lie in its shard."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(repr=False)
    """Offset and size of each, by extension in lower case."""


def open_shards(
    pattern: str,
    *,
    framing: Framing,
    seed: int,
    caption_column: str | None = None,
    bounds: Sequence[Bound] = (),
    window: int = DEFAULT_WINDOW,
    captions_required: bool = True,
) -> PictureSource[Sample]:
    """Finds the shards; looks into none yet.

    Args:
        pattern: Names of uncompressed tar files, with `{00000..00012}`, `{a,b}`, `*` and `?`.
        framing: The size of the pixels, and what is skipped.
        seed: Of the order and of all that is drawn.
        caption_column: The entry of the `.json` that holds captions; None takes the `.txt`.
        bounds: What the `.json` has to keep; with bounds, a sample without one is left out.
        window: How many samples are shuffled at a time. Only their places are held in memory.
        captions_required: Skips pictures without a caption; otherwise theirs is empty.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: The pattern is malformed, or names something but tar files.
    """
    shards = match_files(pattern)
    for shard in shards:
        if shard.suffix != ".tar":
            raise ValueError(f"{shard} is no uncompressed .tar")

    def load(sample: Sample) -> Record:
        return _load(sample, caption_column)

    return PictureSource(
        ShardOrder(shards, lambda shard: scan(shard, bounds), window=window, seed=seed),
        load,
        framing=framing,
        seed=seed,
        captions_required=captions_required,
    )


def scan(shard: Path, bounds: Sequence[Bound] = ()) -> list[Sample]:
    """The samples of a shard that keep the bounds, read from the headers of its members.

    Of a shard that is damaged or cut short, those before the break.
    """
    samples: list[Sample] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would remember them all
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not (member.isreg() and stem and extension) or member.issparse():
                    continue
                key = folder + slash + stem
                if not samples or samples[-1].key != key:
                    samples.append(Sample(shard, key, {}))
                samples[-1].members[extension.lower()] = (member.offset_data, member.size)
    except (OSError, ValueError, tarfile.TarError) as error:  # odd headers raise ValueErrors
        logger.warning("%s is damaged after %d samples: %s", shard, len(samples), error)
    if not bounds or not samples:
        return samples
    with shard.open("rb") as file:
        return [sample for sample in samples if within(bounds, _metadata(file, sample))]


def _load(sample: Sample, caption_column: str | None) -> Record:
    if any(name.rpartition(".")[2] in PICKLED_EXTENSIONS for name in sample.members):
        raise SkipError(Reason.PICKLED)
    picture = next((name for name in sample.members if name in PICTURE_EXTENSIONS), None)
    if picture is None:
        raise SkipError(Reason.NO_PICTURE)
    offset, size = sample.members[picture]
    try:
        with sample.shard.open("rb") as file:
            if caption_column is None:
                captions = caption_from(_text(file, sample, "txt"))
            else:
                captions = captions_in(_metadata(file, sample).get(caption_column))
            file.seek(offset)
            return Record(read_picture(file, size=size), captions)
    except OSError:
        raise SkipError(Reason.UNREADABLE) from None


def _metadata(file: BinaryIO, sample: Sample) -> Mapping[str, object]:
    """The `.json` of a sample; empty, if there is none or it holds something else."""
    try:
        document = json.loads(_text(file, sample, "json"))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(file: BinaryIO, sample: Sample, extension: str) -> bytes:
    """The bytes of a text member, one more than `MAX_TEXT_BYTES` at most; none if it is missing."""
    offset, size = sample.members.get(extension, (0, 0))
    file.seek(offset)
    return file.read(min(size, MAX_TEXT_BYTES + 1))

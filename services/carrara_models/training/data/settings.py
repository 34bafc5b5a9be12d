"""Names a data set in one line, and opens it: what the trainers' command line needs."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from carrara_models.drawn_world.captions import Language
from carrara_models.drawn_world.scenes import Split
from carrara_models.training.data.bounds import parse_bound
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.examples import Source
from carrara_models.training.data.picture_folder import open_folder
from carrara_models.training.data.pictures import Crop, Framing
from carrara_models.training.data.shards import DEFAULT_WINDOW, open_shards
from carrara_models.training.errors import RecipeError

DRAWN_WORLD = "drawn-world"
PICTURES = frozenset(
    {"caption_column", "bounds", "captions_required", "crop", "min_pixels", "max_aspect_ratio"}
)
# The settings that mean something to each kind of data set.
KINDS = {
    DRAWN_WORLD: frozenset(
        {"max_objects", "even_colours", "languages", "omit", "strokes", "blobs"}
    ),
    "folder": PICTURES,
    "shards": PICTURES | {"shuffle_window"},
    "dataset": PICTURES | {"split", "picture_column"},
}


@dataclass(frozen=True)
class DataSettings:
    """Which data set, and what is taken of it; holds no rule about the pixels' size."""

    location: str = DRAWN_WORLD
    """`drawn-world`, `folder:PATH`, `shards:PATTERN` or `dataset:PATH_OR_PATTERN`."""
    caption_column: str | None = None
    """Where captions stand in metadata; None is `text`, and the `.txt` members of shards."""
    bounds: tuple[str, ...] = ()
    """Such as "similarity>=0.3" and "punsafe<=0.1"; a picture has to keep them all."""
    captions_required: bool = True
    """Skips pictures without a caption; otherwise theirs is empty."""
    crop: Crop = "centre"
    min_pixels: int = 1
    max_aspect_ratio: float = math.inf
    shuffle_window: int = DEFAULT_WINDOW
    """How many samples of shards are shuffled at a time."""
    split: str | None = None
    picture_column: str = "image"
    max_objects: int = 2
    """The largest number of objects in a scene of the drawn world."""
    even_colours: bool = False
    """Makes each colour of the drawn world as frequent as any other, not each pair."""
    languages: tuple[Language, ...] = ("en",)
    """Of the drawn world's captions; each is in one of them."""
    omit: float = 0.0
    """How often a caption of the drawn world leaves out one thing."""
    strokes: float = 0.0
    """Share of the pictures that show strokes, in every colour, and no scene."""
    blobs: float = 0.0
    """Share of the other pictures whose objects are of no shape; their captions name none."""

    @property
    def is_drawn(self) -> bool:
        """Whether it is the drawn world, whose pictures can be scored."""
        return self.location == DRAWN_WORLD

    @property
    def shows_scenes(self) -> bool:
        """Whether every picture is of a scene that is known."""
        return self.is_drawn and not self.strokes and not self.blobs


def open_drawn_world(
    settings: DataSettings, *, height: int, width: int, seed: int, split: Split = "train"
) -> DrawnWorld:
    """The drawn world as a source; its settings must be the drawn world's."""
    return DrawnWorld(
        height=height,
        width=width,
        seed=seed,
        max_objects=settings.max_objects,
        even_colours=settings.even_colours,
        languages=settings.languages,
        omit=settings.omit,
        strokes=settings.strokes,
        blobs=settings.blobs,
        split=split,
    )


def open_measured(settings: DataSettings, *, height: int, width: int) -> Source:
    """What a run measures itself on: held-out scenes of the drawn world, else the data again."""
    if settings.is_drawn:
        whole = replace(settings, even_colours=False, omit=0.0, strokes=0.0, blobs=0.0)
        return open_drawn_world(whole, height=height, width=width, seed=1, split="heldout")
    return open_source(settings, height=height, width=width, seed=1)


def settings_of_kind(settings: DataSettings) -> frozenset[str]:
    """The names of the settings that mean something to this kind of data set.

    Raises:
        RecipeError: It is of no known kind.
    """
    kind, _, place = settings.location.partition(":")
    if kind not in KINDS or bool(place) == (kind == DRAWN_WORLD):
        known = ", ".join([DRAWN_WORLD, *(f"{kind}:..." for kind in KINDS if kind != DRAWN_WORLD)])
        raise RecipeError(f"{settings.location!r} is no data set; known are {known}")
    return KINDS[kind] | {"location"}


def open_source(settings: DataSettings, *, height: int, width: int, seed: int) -> Source:
    """Opens a data set as a source of examples.

    Args:
        settings: Which, and what is taken of it.
        height: Of the pixels.
        width: Of the pixels.
        seed: Of the order and of all that is drawn; the run's.

    Raises:
        FileNotFoundError: It is not there.
        DataError: It holds nothing that is wanted.
        RecipeError: The location is of no known kind, or a setting means nothing to it.
    """
    meaningful = settings_of_kind(settings)
    kind, _, place = settings.location.partition(":")
    for setting in fields(settings):
        changed = getattr(settings, setting.name) != setting.default
        if changed and setting.name not in meaningful:
            raise RecipeError(f"{setting.name} means nothing to {settings.location}")
    if kind == DRAWN_WORLD:
        return open_drawn_world(settings, height=height, width=width, seed=seed)
    framing = Framing(
        height=height,
        width=width,
        crop=settings.crop,
        min_pixels=settings.min_pixels,
        max_aspect_ratio=settings.max_aspect_ratio,
    )
    bounds = tuple(map(parse_bound, settings.bounds))
    if kind == "shards":
        return open_shards(
            place,
            framing=framing,
            seed=seed,
            caption_column=settings.caption_column,
            bounds=bounds,
            window=settings.shuffle_window,
            captions_required=settings.captions_required,
        )
    column = settings.caption_column or "text"
    if kind == "folder":
        return open_folder(
            Path(place),
            framing=framing,
            seed=seed,
            caption_column=column,
            bounds=bounds,
            captions_required=settings.captions_required,
        )
    # Loaded only here: it brings pyarrow and pandas.
    from carrara_models.training.data.saved_dataset import open_saved_dataset

    return open_saved_dataset(
        place,
        framing=framing,
        seed=seed,
        split=settings.split,
        picture_column=settings.picture_column,
        caption_column=column,
        bounds=bounds,
        captions_required=settings.captions_required,
    )

"""Feature networks by the names that the command line gives them."""

from pathlib import Path

from carrara_models.embedded import embedded_folder
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.clip_features import ClipNetwork, load_clip
from carrara_models.evaluation.inception_features import InceptionNetwork, load_inception

DRAWN_CLIP = "drawn-clip"
CHOICES = f"{DRAWN_CLIP}, {DRAWN_CLIP}:FOLDER, clip:FOLDER, inception:FILE"
# The embedded checkpoint whose prior stands on the drawn world's CLIP, and so brings it.
HOST, COMPONENTS = "drawn-unclip", "prior"


def open_network(choice: str) -> ClipNetwork | InceptionNetwork:
    """Loads a feature network.

    Args:
        choice: One of `CHOICES`. Without a folder, "drawn-clip" is the one that ships.

    Raises:
        BadFieldError: It is none of them.
        CheckpointError: The weights are missing, or broken.
    """
    kind, colon, place = choice.partition(":")
    if choice == DRAWN_CLIP:
        return load_clip(_shipped_clip(), name="drawn_clip")
    if colon and place and kind == DRAWN_CLIP:
        return load_clip(_folder(place), name="drawn_clip")
    if colon and place and kind == "clip":
        return load_clip(_folder(place))
    if colon and place and kind == "inception":
        return load_inception(Path(place))
    raise BadFieldError("feature_network", choice, CHOICES)


def _folder(place: str) -> Path:
    folder = Path(place).resolve()  # a fingerprint needs its name
    if not folder.is_dir():
        raise CheckpointError(f"{place} is no folder.")
    return folder


def _shipped_clip() -> Path:
    try:
        folder = embedded_folder(HOST) / COMPONENTS
    except KeyError:
        raise CheckpointError(
            f"The drawn world's CLIP ships in the embedded checkpoint {HOST!r}, which is not "
            f"installed. Name another network, or the folder of such a CLIP: {CHOICES}."
        ) from None
    return folder

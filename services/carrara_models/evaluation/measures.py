"""FID, KID, CLIP score and attributes of pictures, each with its interval and its basis.

It knows neither checkpoints nor how pictures were painted.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from carrara_models.drawn_world.checker import ATTRIBUTES, Reading, share_right
from carrara_models.drawn_world.scenes import Scene
from carrara_models.errors import ContractError
from carrara_models.evaluation.attributes import score_readings
from carrara_models.evaluation.clip_features import ClipNetwork
from carrara_models.evaluation.distances import (
    KID_SUBSET_SIZE,
    clip_scores,
    fit_gaussian,
    frechet_distance,
    kernel_distances,
)
from carrara_models.evaluation.estimates import RESAMPLES, Estimate, bootstrap, jackknife, share
from carrara_models.evaluation.features import Features, FeatureSpace, require_same_space
from carrara_models.evaluation.reference import Reference


@dataclass(frozen=True)
class Basis:
    """What a number depends on beside the pictures; only numbers of equal bases are compared.

    Attributes:
        space: None of measures that use no features.
        pictures: How many.
        against: The reference, the captions or the scenes, in words and with a fingerprint.
    """

    space: FeatureSpace | None
    pictures: int
    against: str

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Basis":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: A field is missing or unknown.
        """
        space = content["space"]
        return cls(**content | {"space": None if space is None else FeatureSpace.from_json(space)})


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        key: The measure and the features, such as "fid_drawn_clip"; an attribute's name alone.
        floor: Of the same pictures with the captions of others; None where captions do not count.
        ceiling: Of true pictures of the same captions; None where there are none.
        notes: What a reader must know beside it.
    """

    key: str
    estimate: Estimate
    basis: Basis
    floor: float | None = None
    ceiling: float | None = None
    notes: tuple[str, ...] = ()


def measure_fid(
    pictures: Features, reference: Reference, *, seed: int = 0, resamples: int = RESAMPLES
) -> Measure:
    """FID, with the interval of resampled pictures; the reference is held fixed.

    Raises:
        ContractError: The features or the counts are not the reference's.
        BadFieldError: There are no more pictures than numbers per picture.
    """
    reference.require(pictures)
    reference.require_count(len(pictures.values))
    estimate = bootstrap(
        lambda places: frechet_distance(reference.gaussian, fit_gaussian(pictures.values[places])),
        len(pictures.values),
        seed=seed,
        resamples=resamples,
    )
    return Measure(f"fid_{pictures.space.name}", estimate, _basis(pictures, reference))


def measure_kid(pictures: Features, reference: Reference, *, seed: int = 0) -> Measure:
    """KID: the mean over random subsets, not multiplied by anything.

    The interval is of pictures and reference both drawn anew; where the two sets are alike it is
    too wide, as the statistic is then degenerate.

    Raises:
        ContractError: The features are not the reference's.
        BadFieldError: There are fewer than 4 pictures, or kept features of the reference.
    """
    reference.require(pictures)
    fewest = min(len(pictures.values), len(reference.kept))
    size = min(KID_SUBSET_SIZE, fewest // 2)
    values = kernel_distances(pictures.values, reference.kept, seed=seed, subset_size=size)
    estimate = jackknife(values, size=size, count=fewest)
    return Measure(f"kid_{pictures.space.name}", estimate, _basis(pictures, reference))


def measure_clip_score(
    pictures: Features,
    captions: Sequence[str],
    *,
    network: ClipNetwork,
    shift: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measure:
    """The mean CLIP score of pictures with their captions, in [0, 100]; see `clip_scores`.

    Args:
        pictures: By this network.
        captions: One for each picture.
        shift: How many places on the captions of the floor stand; None: no floor.

    Raises:
        ContractError: The features are another network's, or it reads no captions.
    """
    who = ("the pictures' features", "the captions' network")
    require_same_space(pictures.space, network.space, who=who)
    if len(captions) != len(pictures.values):
        raise ContractError(f"{len(pictures.values)} pictures have {len(captions)} captions.")
    texts = network.read(captions).values
    scores = clip_scores(pictures.values, texts)
    estimate = bootstrap(
        lambda places: float(scores[places].mean()), len(scores), seed=seed, resamples=resamples
    )
    cut = network.count_cut(captions)
    return Measure(
        key=f"clip_score_{pictures.space.name}",
        estimate=estimate,
        floor=None
        if shift is None
        else float(clip_scores(pictures.values, np.roll(texts, -shift, axis=0)).mean()),
        basis=Basis(pictures.space, len(scores), f"their captions (sha256 {_digest(captions)})"),
        notes=(f"{cut} of {len(captions)} captions were cut to the tokens that fit",)
        if cut
        else (),
    )


def measure_attributes(
    readings: Sequence[Reading],
    scenes: Sequence[Scene],
    *,
    shift: int | None = None,
) -> tuple[Measure, ...]:
    """The share of right pictures, in [0, 1], by attribute, over the scenes that have it.

    Args:
        readings: Of the pictures, by the drawn world's checker.
        scenes: One for each picture.
        shift: How many places on the scenes of the floor stand; None: no floor.
    """
    basis = Basis(None, len(scenes), f"their scenes (sha256 {_digest(map(asdict, scenes))})")
    scores = score_readings(readings, scenes)
    floors: dict[str, float] = {}
    if shift is not None:
        floors = share_right(score_readings(readings, [*scenes[shift:], *scenes[:shift]]))
    measures = []
    for name in ATTRIBUTES:
        right = np.array([score[name] for score in scores if name in score])
        if len(right):
            measures.append(Measure(name, share(right), basis, floor=floors.get(name)))
    return tuple(measures)


def require_comparable(measures: Iterable[Measure]) -> None:
    """Refuses to set numbers of one key side by side that were measured otherwise.

    Raises:
        ContractError: The message names what differs on both sides.
    """
    first: dict[str, Measure] = {}
    for measure in measures:
        other = first.setdefault(measure.key, measure).basis
        basis = measure.basis
        if basis.space is not None and other.space is not None:
            require_same_space(basis.space, other.space, who=(f"one {measure.key}", "another"))
        for name, ours, theirs in (
            ("count of pictures", basis.pictures, other.pictures),
            ("reference, captions or scenes", basis.against, other.against),
        ):
            if ours != theirs:
                raise ContractError(
                    f"Numbers of {measure.key} are not compared when their {name} differs: "
                    f"{ours} and {theirs}."
                )


def _basis(pictures: Features, reference: Reference) -> Basis:
    against = f"{reference.data}, {reference.count} pictures (sha256 {reference.fingerprint})"
    return Basis(pictures.space, len(pictures.values), against)


def _digest(content: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(content)).encode()).hexdigest()

"""FID, KID and the CLIP score of pictures, each with its interval and what it was measured with.

It knows neither checkpoints nor how pictures were painted.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from carrara_models.errors import ContractError
from carrara_models.evaluation.clip_features import ClipNetwork
from carrara_models.evaluation.distances import (
    KID_SUBSET_SIZE,
    clip_scores,
    fit_gaussian,
    frechet_distance,
    kernel_distances,
)
from carrara_models.evaluation.estimates import RESAMPLES, Estimate, bootstrap, jackknife
from carrara_models.evaluation.features import Features, FeatureSpace, require_same_space
from carrara_models.evaluation.reference import Reference


@dataclass(frozen=True)
class Basis:
    """What a number depends on beside the pictures; only numbers of equal bases are compared.

    Attributes:
        pictures: How many.
        against: The reference or the captions, in words and with a fingerprint.
    """

    space: FeatureSpace
    pictures: int
    against: str


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        key: The measure and the features, such as "fid_drawn_clip".
        notes: What a reader must know beside it.
    """

    key: str
    estimate: Estimate
    basis: Basis
    notes: tuple[str, ...] = ()


def measure_distances(
    pictures: Features, reference: Reference, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Measure, ...]:
    """FID and KID; KID alone where the pictures are too few for FID, with a note.

    Raises:
        ContractError: The features, or for FID the counts, are not the reference's.
    """
    distance = measure_kid(pictures, reference, seed=seed)
    width, count = pictures.space.width, len(pictures.values)
    if count <= width:
        note = (
            f"no FID: it needs more than {width} pictures, the features' width; there are {count}"
        )
        return (replace(distance, notes=(note,)),)
    return (measure_fid(pictures, reference, seed=seed, resamples=resamples), distance)


def measure_fid(
    pictures: Features, reference: Reference, *, seed: int = 0, resamples: int = RESAMPLES
) -> Measure:
    """FID, with the interval of resampled pictures; the reference is held fixed.

    Raises:
        ContractError: The features or the counts are not the reference's.
        BadFieldError: There are no more pictures than numbers per picture.
    """
    reference.require(pictures)
    reference.require_equal_count(pictures)
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
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measure:
    """The mean CLIP score of pictures with their captions, in [0, 100]; see `clip_scores`.

    Args:
        pictures: By this network.
        captions: One for each picture.

    Raises:
        ContractError: The features are another network's, or it reads no captions.
    """
    who = ("the pictures' features", "the captions' network")
    require_same_space(pictures.space, network.space, who=who)
    if len(captions) != len(pictures.values):
        raise ContractError(f"{len(pictures.values)} pictures have {len(captions)} captions.")
    scores = clip_scores(pictures.values, network.read(captions).values)
    estimate = bootstrap(
        lambda places: float(scores[places].mean()), len(scores), seed=seed, resamples=resamples
    )
    digest = hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()
    cut = network.count_cut(captions)
    return Measure(
        key=f"clip_score_{pictures.space.name}",
        estimate=estimate,
        basis=Basis(pictures.space, len(scores), f"their captions (sha256 {digest})"),
        notes=(f"{cut} of {len(captions)} captions were cut to the tokens that fit",)
        if cut
        else (),
    )


def require_comparable(measures: Iterable[Measure]) -> None:
    """Refuses to set numbers of one key side by side that were measured otherwise.

    Raises:
        ContractError: The message names what differs on both sides.
    """
    first: dict[str, Measure] = {}
    for measure in measures:
        other = first.setdefault(measure.key, measure).basis
        basis = measure.basis
        require_same_space(basis.space, other.space, who=(f"one {measure.key}", "another"))
        for name, ours, theirs in (
            ("count of pictures", basis.pictures, other.pictures),
            ("reference or captions", basis.against, other.against),
        ):
            if ours != theirs:
                raise ContractError(
                    f"Numbers of {measure.key} are not compared when their {name} differs: "
                    f"{ours} and {theirs}."
                )


def _basis(pictures: Features, reference: Reference) -> Basis:
    against = f"{reference.data}, {reference.count} pictures (sha256 {reference.fingerprint})"
    return Basis(pictures.space, len(pictures.values), against)

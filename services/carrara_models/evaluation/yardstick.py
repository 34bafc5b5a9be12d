"""What pictures are measured by: the measures that are wanted, a reference, floors and ceilings.

It knows neither checkpoints nor how pictures were painted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from carrara_models.errors import BadFieldError, ContractError
from carrara_models.evaluation.attributes import read_pictures
from carrara_models.evaluation.caption_sets import CaptionSet
from carrara_models.evaluation.clip_features import ClipNetwork
from carrara_models.evaluation.estimates import RESAMPLES
from carrara_models.evaluation.features import FeatureNetwork, require_same_space
from carrara_models.evaluation.measures import (
    Measure,
    measure_attributes,
    measure_clip_score,
    measure_fid,
    measure_kid,
)
from carrara_models.evaluation.reference import Reference, make_reference

FEWEST_FOR_KID = 4

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Wanted:
    """Which measures; their keys begin with these names."""

    attributes: bool = False
    fid: bool = False
    kid: bool = False
    clip_score: bool = False

    @property
    def distances(self) -> bool:
        """Whether a reference is needed."""
        return self.fid or self.kid

    @property
    def features(self) -> bool:
        """Whether a feature network is needed."""
        return self.distances or self.clip_score


def reference_of(
    captions: CaptionSet, network: FeatureNetwork, *, height: int, width: int
) -> Reference:
    """Statistics of the pictures that a set of captions brings to compare with.

    Raises:
        BadFieldError: It brings none.
    """
    if captions.draw_reference is None:
        allowed = "captions that come with pictures"
        raise BadFieldError("reference", None, allowed)
    features = network.extract(captions.draw_reference(height, width))
    return make_reference(features, data=f"{captions.data}, {height} x {width}")


class Yardstick:
    """Measures pictures of one set of captions, all of one size.

    Args:
        network: None where no measure needs one.
        reference: None: made of the captions' own, when the size of the pictures is known.
        rebuild: What true pictures go through before the ceilings are taken of them, such as an
            autoencoder; uint8 [N, H, W, 3] to the same.
        seed: Chooses resamples, subsets and the captions of the floor.

    Raises:
        BadFieldError: A measure needs more pictures.
        ContractError: A measure needs what the captions, the network or the reference do not have.
    """

    def __init__(
        self,
        captions: CaptionSet,
        wanted: Wanted,
        *,
        network: FeatureNetwork | None = None,
        reference: Reference | None = None,
        rebuild: Callable[[Pictures], Pictures] | None = None,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> None:
        self._set, self._wanted, self._network = captions, wanted, network
        self._reference, self._rebuild = reference, rebuild
        self._seed, self._resamples = seed, resamples
        self._size: tuple[int, int] | None = None
        self._ceilings: dict[str, float] = {}
        # A rotation: no picture keeps its caption.
        self._shift = int(np.random.default_rng(seed).integers(1, len(captions.captions)))
        self._check()

    @property
    def reference(self) -> Reference | None:
        """What FID and KID compare with: as given, or once `prepare` has made it."""
        return self._reference

    def prepare(self, height: int, width: int) -> None:
        """Makes the reference and takes the ceilings, in the size of the pictures.

        Raises:
            BadFieldError: Attributes cannot be read in pictures of this size.
        """
        if self._wanted.attributes and height != width:
            allowed = "square ones, which attributes are read in"
            raise BadFieldError("pictures", f"{height} x {width}", allowed)
        self._size = height, width
        given = self._reference is not None
        if self._wanted.distances and not given:
            self._reference = reference_of(self._set, self._network, height=height, width=width)
        if self._set.draw_true is None:
            return
        pictures = self._set.draw_true(height, width)
        if self._rebuild is not None:
            pictures = self._rebuild(pictures)
        wanted = self._wanted
        if not given and self._set.draw_reference is self._set.draw_true:
            wanted = replace(wanted, fid=False, kid=False)  # no set is at a distance from itself
        self._ceilings = {
            measure.key: measure.estimate.value
            for measure in self._measures(pictures, wanted, resamples=2)
        }

    def measure(self, pictures: Pictures) -> tuple[Measure, ...]:
        """All measures of pictures uint8 [N, H, W, 3], one for each caption in its order.

        Raises:
            ContractError: They are of another size than was prepared for.
        """
        size = pictures.shape[1], pictures.shape[2]
        if size != self._size:
            raise ContractError(
                f"Pictures of one size are compared: there are some of {size[0]} x {size[1]}, and "
                f"reference and ceilings are for {self._size}."
            )
        return tuple(
            replace(measure, ceiling=self._ceilings.get(measure.key))
            for measure in self._measures(pictures, self._wanted, resamples=self._resamples)
        )

    def _measures(self, pictures: Pictures, wanted: Wanted, *, resamples: int) -> list[Measure]:
        sampling = {"seed": self._seed, "resamples": resamples}
        captions, scenes = self._set.captions, self._set.scenes
        measures: list[Measure] = []
        if wanted.attributes:
            readings = read_pictures(pictures)
            measures += measure_attributes(readings, scenes, shift=self._shift)
        if not wanted.features:
            return measures
        features = self._network.extract(pictures)
        if wanted.fid:
            measures.append(measure_fid(features, self._reference, **sampling))
        if wanted.kid:
            measures.append(measure_kid(features, self._reference, seed=self._seed))
        if wanted.clip_score:
            measures.append(
                measure_clip_score(
                    features, captions, network=self._network, shift=self._shift, **sampling
                )
            )
        return measures

    def _check(self) -> None:
        count, wanted = len(self._set.captions), self._wanted
        if wanted.attributes and not self._set.scenes:
            raise BadFieldError("attributes", True, "captions of the drawn world alone")
        if not wanted.features:
            return
        space = self._network.space
        if wanted.clip_score and not (
            isinstance(self._network, ClipNetwork) and self._network.reads_captions
        ):
            allowed = "a network that reads captions too: a CLIP with its text tower"
            raise BadFieldError("feature_network", space.name, allowed)
        if not wanted.distances:
            return
        if self._reference is None and self._set.draw_reference is None:
            allowed = "stored statistics, as these captions come without pictures to compare with"
            raise BadFieldError("reference", None, allowed)
        if self._reference is not None:
            who = ("the pictures", f"the reference ({self._reference.data})")
            require_same_space(space, self._reference.space, who=who)
        if wanted.kid and count < FEWEST_FOR_KID:
            raise BadFieldError("captions", count, f"at least {FEWEST_FOR_KID} for KID")
        if wanted.fid:
            if count <= space.width:
                allowed = (
                    f"more than {space.width} for FID, the width of the features of {space.name}; "
                    "KID takes fewer"
                )
                raise BadFieldError("captions", count, allowed)
            if self._reference is not None:
                self._reference.require_count(count)

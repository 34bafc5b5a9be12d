"""Examples from the drawn world: scenes drawn on the fly, with captions that a grammar writes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from carrara_models.drawn_world.blobs import draw_blobs
from carrara_models.drawn_world.captions import Language, without_shapes, write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Scene, Split, sample_scene
from carrara_models.drawn_world.strokes import draw_strokes
from carrara_models.training.data.examples import Examples
from carrara_models.training.randomness import Draw, rng_of


class DrawnWorld:
    """An endless source of scenes; of those to train on, none shows a held-out pair."""

    def __init__(
        self,
        *,
        height: int,
        width: int,
        seed: int,
        max_objects: int = 2,
        even_colours: bool = False,
        languages: Sequence[Language] = ("en",),
        omit: float = 0.0,
        strokes: float = 0.0,
        blobs: float = 0.0,
        split: Split = "train",
    ) -> None:
        """Draws nothing yet.

        Args:
            height: Of the pictures, in pixels.
            width: Of the pictures, in pixels.
            seed: Of scenes and wordings.
            max_objects: The largest number of objects in a scene.
            even_colours: Makes each colour as frequent as any other.
            languages: Of captions; each is in one of them, each as likely as any other.
            omit: How often a caption leaves out one thing.
            strokes: Share of the pictures that show strokes, in every colour, and no scene; their
                caption is empty.
            blobs: Share of the other pictures whose objects are of no shape; their captions name
                none.
            split: "heldout" gives scenes of held-out pairs and nothing else.
        """
        self._height, self._width, self._seed = height, width, seed
        self._max_objects, self._even_colours = max_objects, even_colours
        self._languages = tuple(languages)
        self._omit, self._strokes, self._blobs, self._split = omit, strokes, blobs, split

    def examples(self, positions: Sequence[int]) -> Examples:
        """The examples at `positions`; see `Source`. None is ever skipped."""
        size = {"height": self._height, "width": self._width}
        pixels = torch.empty(len(positions), 3, self._height, self._width)
        captions = [""] * len(positions)
        scenes: dict[int, Scene] = {}
        for index, position in enumerate(positions):
            rng = rng_of(self._seed, Draw.EXAMPLE, position)
            if self._strokes and rng.random() < self._strokes:
                pixels[index] = draw_strokes(1, rng, **size)[0]
                continue
            blobs = bool(self._blobs) and rng.random() < self._blobs
            scene, captions[index] = self._scene(rng)
            if blobs:
                captions[index] = without_shapes(captions[index])
                pixels[index] = draw_blobs([scene], rng, **size)[0]
            else:
                scenes[index] = scene
        # All at once, which is much faster than one by one.
        pixels[list(scenes)] = draw_scenes(list(scenes.values()), **size)
        return Examples(pixels=pixels, captions=captions, skipped=Counter())

    def scenes(self, positions: Sequence[int]) -> list[tuple[Scene, str]]:
        """The scenes at `positions` with their captions, where all show their scenes."""
        assert not self._strokes
        assert not self._blobs
        return [self._scene(rng_of(self._seed, Draw.EXAMPLE, position)) for position in positions]

    def _scene(self, rng: np.random.Generator) -> tuple[Scene, str]:
        scene = sample_scene(
            rng,
            split=self._split,
            max_objects=self._max_objects,
            even_colours=self._even_colours,
        )
        language = self._languages[rng.integers(len(self._languages))]
        return scene, write_caption(scene, rng, language=language, omit=self._omit)

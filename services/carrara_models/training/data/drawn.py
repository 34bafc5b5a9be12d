"""Examples from the drawn world: scenes drawn on the fly, with captions that a grammar writes."""

from collections import Counter

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.data.examples import Examples
from carrara_models.training.data.order import Draw, rng_of


class DrawnWorld:
    """An endless source of training scenes; none shows a held-out pair."""

    def __init__(self, *, height: int, width: int, seed: int, omit: float = 0.0) -> None:
        """Draws nothing yet.

        Args:
            height: Of the pictures, in pixels.
            width: Of the pictures, in pixels.
            seed: Of scenes and wordings.
            omit: How often a caption leaves out one thing.
        """
        self._height, self._width, self._seed, self._omit = height, width, seed, omit

    def examples(self, step: int, *, count: int) -> Examples:
        """The examples of `step`; see `Source`. None is ever skipped."""
        rng = rng_of(self._seed, Draw.SCENES, step)
        scenes = [sample_scene(rng) for _ in range(count)]
        return Examples(
            pixels=draw_scenes(scenes, height=self._height, width=self._width),
            captions=[write_caption(scene, rng, omit=self._omit) for scene in scenes],
            skipped=Counter(),
        )

"""What a model is trained on: how many objects its scenes hold, and which languages tell them."""

from dataclasses import dataclass

import numpy as np

from carrara_models.drawn_world.captions import Language


@dataclass(frozen=True)
class Curriculum:
    """The part of the drawn world that is taught."""

    max_objects: int = 2
    languages: tuple[Language, ...] = ("en",)
    """Each caption is in one of them, each as likely as any other."""

    def draw_language(self, rng: np.random.Generator) -> Language:
        """The language of the next caption; a single one takes no draw."""
        if len(self.languages) == 1:
            return self.languages[0]
        return self.languages[rng.integers(len(self.languages))]


PLAIN_CURRICULUM = Curriculum()

import numpy as np
import pytest

from carrara_models.drawn_world.captions import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    caption_words,
    write_caption,
)
from carrara_models.drawn_world.scenes import (
    INVERSE_RELATIONS,
    Object,
    Scene,
    sample_scene,
)

RED_ABOVE_BLUE = Scene(
    "white",
    (
        Object("circle", "red", "large", 0.5, 0.25, 0.22),
        Object("square", "blue", "small", 0.5, 0.75, 0.16),
    ),
    relation="above",
)


@pytest.mark.parametrize(
    "caption",
    [
        "a large red circle above a small blue square on a white background",
        "a small blue square below a large red circle on a white background",
        "a big red disc over a tiny blue box on white",
        "on a white background, a large red circle above a small blue square",
    ],
)
def test_the_grammar_makes(caption):
    rng = np.random.default_rng(0)
    assert caption in {write_caption(RED_ABOVE_BLUE, rng) for _ in range(20000)}


def test_a_full_caption_tells_every_attribute():
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = sample_scene(rng)
        caption = write_caption(scene, rng)
        tells = [BACKGROUND_WORDS[scene.background]]
        for thing in scene.objects:
            tells += [SHAPE_WORDS[thing.shape], COLOUR_WORDS[thing.colour]]
            tells += [SIZE_WORDS[thing.size]]
        if scene.place is not None:
            tells.append(PLACE_WORDS[scene.place])
        else:
            inverse = INVERSE_RELATIONS[scene.relation]
            tells.append(RELATION_WORDS[scene.relation] + RELATION_WORDS[inverse])
        for wordings in tells:
            assert any(wording in caption for wording in wordings), caption


def test_no_wording_stands_for_two_values():
    for table in (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, BACKGROUND_WORDS, PLACE_WORDS):
        wordings = [wording for words in table.values() for wording in words]
        assert len(wordings) == len(set(wordings))


def test_an_omitting_caption_still_names_colour_and_shape():
    rng = np.random.default_rng(2)
    scene = sample_scene(rng, two_objects=False)
    captions = {write_caption(scene, rng, omit=0.5) for _ in range(500)}
    assert any(len(caption.split()) == 3 for caption in captions)
    for caption in captions:
        assert any(word in caption for word in SHAPE_WORDS[scene.objects[0].shape])


def test_caption_words_are_all_that_captions_hold():
    rng = np.random.default_rng(3)
    held = set()
    for _ in range(5000):
        held |= set(write_caption(sample_scene(rng), rng, omit=0.1).replace(",", " ,").split())
    assert held <= set(caption_words())
    assert len(set(caption_words()) - held) == 0

import numpy as np
import pytest

from carrara_models.drawn_world import chinese, english
from carrara_models.drawn_world.captions import (
    LANGUAGES,
    caption_words,
    without_colours,
    without_shapes,
    write_caption,
    write_paraphrase,
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


STAR_LEFT_OF_THEM = Scene(
    "black",
    (*RED_ABOVE_BLUE.objects, Object("star", "green", "small", 0.2, 0.5, 0.16)),
    relation="above",
    third_relation="left of",
)
CAPTIONS = [
    "on a pink background, a little green triangle to the left of a tiny yellow square",
    "on brown, a little violet disc at the bottom centre",
    "on a white background, a little green ring in the upper right corner",
]
GRAMMARS = {"en": english, "zh": chinese}


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


@pytest.mark.parametrize(
    "caption",
    [
        "a large red circle above a small blue square, "
        "and a small green star left of both on black",
        "on black, a small blue square below a large red circle, "
        "both are right of a small green star",
        "a small green star left of a small blue square and a large red circle, "
        "the blue one under the red one on black",
    ],
)
def test_the_grammar_makes_of_three_objects(caption):
    rng = np.random.default_rng(0)
    plain = {"little": "small", "tiny": "small", "big": "large", "box": "square", "disc": "circle"}
    made = set()
    for _ in range(6000):
        words = write_caption(STAR_LEFT_OF_THEM, rng)
        for word, plain_word in plain.items():
            words = words.replace(word, plain_word)
        made.add(words)
    assert caption in made


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (RED_ABOVE_BLUE, "一个大的红色圆形在一个小的蓝色正方形的上方，白色背景"),
        (RED_ABOVE_BLUE, "在白色的背景上，一个红色的大圆盘的下面有一个蓝色的小方块"),
        (
            STAR_LEFT_OF_THEM,
            "黑色背景上，一个红色的大圆形在一个蓝色的小正方形的上方，一颗绿色的小星星在它们的左边",
        ),
        (
            STAR_LEFT_OF_THEM,
            "一颗绿色的小星星在一个红色的大圆形和一个蓝色的小正方形的左边，"
            "红色的在蓝色的上方，背景是黑色",
        ),
    ],
)
def test_the_chinese_grammar_makes(scene, caption):
    rng = np.random.default_rng(0)
    plain = {"侧": "边", "面": "方", "大大": "大", "小小": "小", "五角星": "星星"}
    plain |= {"圆盘": "圆形", "方块": "正方形"}

    def plainly(words):
        for word, plain_word in plain.items():
            words = words.replace(word, plain_word)
        return words

    made = {plainly(write_caption(scene, rng, language="zh")) for _ in range(6000)}
    assert plainly(caption) in made


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("write", [write_caption, write_paraphrase])
def test_a_full_caption_tells_every_attribute(language, write):
    rng = np.random.default_rng(1)
    grammar = GRAMMARS[language]
    for _ in range(300):
        scene = sample_scene(rng, max_objects=3)
        caption = write(scene, rng, language=language)
        tells = [grammar.BACKGROUND_WORDS[scene.background]]
        for thing in scene.objects:
            tells += [grammar.SHAPE_WORDS[thing.shape], grammar.COLOUR_WORDS[thing.colour]]
            sizes = grammar.SIZE_WORDS[thing.size]
            if language == "zh":
                sizes += chinese.SHORT_SIZE_WORDS[thing.size]
            tells.append(sizes)
        if scene.place is not None:
            tells.append(grammar.PLACE_WORDS[scene.place])
        for relation in (scene.relation, scene.third_relation):
            if relation is not None:
                inverse = INVERSE_RELATIONS[relation]
                tells.append(grammar.RELATION_WORDS[relation] + grammar.RELATION_WORDS[inverse])
        for wordings in tells:
            assert any(wording in caption for wording in wordings), caption


@pytest.mark.parametrize("grammar", GRAMMARS.values())
def test_no_wording_stands_for_two_values(grammar):
    for name in ("SHAPE", "COLOUR", "SIZE", "BACKGROUND", "RELATION", "PLACE"):
        table = getattr(grammar, f"{name}_WORDS")
        wordings = [wording for words in table.values() for wording in words]
        assert len(wordings) == len(set(wordings))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_paraphrase_is_a_caption_that_is_trained_on(language):
    rng = np.random.default_rng(4)
    for count in (1, 2, 3):
        scene = sample_scene(rng, object_count=count)
        captions = {write_caption(scene, rng, language=language) for _ in range(1000)}
        assert len(captions) > 50
        paraphrases = {write_paraphrase(scene, rng, language=language) for _ in range(100)}
        assert not captions & paraphrases


def test_an_omitting_caption_still_names_colour_and_shape():
    rng = np.random.default_rng(2)
    scene = sample_scene(rng, object_count=1)
    captions = {write_caption(scene, rng, omit=0.5) for _ in range(500)}
    assert any(len(caption.split()) == 3 for caption in captions)
    for caption in captions:
        assert any(word in caption for word in english.SHAPE_WORDS[scene.objects[0].shape])


def test_caption_words_are_all_that_english_captions_hold():
    rng = np.random.default_rng(3)
    held = set()
    for _ in range(5000):
        caption = write_caption(sample_scene(rng, max_objects=3), rng, omit=0.1)
        held |= set(caption.replace(",", " ,").split())
    assert held == set(caption_words())


def test_captions_of_the_shipped_checkpoint_s_evaluation_are_what_they_were():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, split="heldout") for _ in range(3)]
    assert [write_caption(scene, rng) for scene in scenes] == CAPTIONS


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("an orange heart under a tiny red box on dark blue", "a heart under a tiny box on"),
        ("on gray, a big turquoise plus at the top", "on , a big plus at the top"),
        ("红色的大圆环在顶部，背景是深蓝色", "大圆环在顶部，背景是"),
        ("a portrait of Fred in an orangery", "a portrait of Fred in an orangery"),
        ("", ""),
    ],
)
def test_without_colours_a_caption_tells_the_rest(caption, told):
    assert without_colours(caption) == told


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_that_differ_in_colours_alone_are_the_same_without_them(language):
    def told(colours, background):
        objects = tuple(
            Object(o.shape, colour, o.size, o.x, o.y, o.radius)
            for o, colour in zip(STAR_LEFT_OF_THEM.objects, colours, strict=True)
        )
        scene = Scene(background, objects, relation="above", third_relation="left of")
        # The same wordings: no colour with two names, which would take another choice.
        captions = (
            write_caption(scene, np.random.default_rng(seed), language=language)
            for seed in range(40)
        )
        return [without_colours(caption) for caption in captions]

    one, other = ("red", "blue", "green"), ("green", "yellow", "red")
    assert told(one, "white") == told(other, "black")


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        (
            "a large red circle above a tiny blue moon on white",
            "a large red above a tiny blue on white",
        ),
        ("on navy, an orange box in the middle", "on navy, an orange in the middle"),
        (
            "一个大的红色圆形在一个小的蓝色方块的上方，白色背景",
            "一个大的红色在一个小的蓝色的上方，白色背景",
        ),
        ("左上角有一颗黄色的小五角星", "左上角有一颗黄色的小"),
        ("a boxer with a starfish", "a boxer with a starfish"),
        ("", ""),
    ],
)
def test_without_shapes_a_caption_tells_the_rest(caption, told):
    assert without_shapes(caption) == told


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_shape_is_left_in_any_wording(language):
    words = {"en": english, "zh": chinese}[language].SHAPE_WORDS
    rng = np.random.default_rng(0)
    for _ in range(300):
        caption = write_caption(sample_scene(rng, max_objects=3), rng, language=language)
        told = without_shapes(caption)
        assert told != caption
        assert not any(word in told for wordings in words.values() for word in wordings)

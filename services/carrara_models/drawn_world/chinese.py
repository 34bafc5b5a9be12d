"""Captions in simplified Chinese: a grammar with varied wording.

It knows nothing of pixels or tokens.
"""

import re

import numpy as np

from carrara_models.drawn_world.english import any_of, pick
from carrara_models.drawn_world.scenes import INVERSE_RELATIONS, Object, Scene

# The first wording of each is the plain one.
SHAPE_WORDS = {
    "circle": ("圆形", "圆盘"),
    "square": ("正方形", "方块"),
    "triangle": ("三角形",),
    "star": ("星星", "五角星"),
    "ring": ("圆环",),
    "cross": ("十字", "十字形"),
    "heart": ("心形", "爱心"),
    "crescent": ("月牙", "新月"),
}
# Words for single things of a kind that is usually counted with 颗.
_COUNTED_LIKE_STARS = ("星星", "五角星", "爱心")
COLOUR_WORDS = {
    "red": ("红色",),
    "orange": ("橙色", "橘色"),
    "yellow": ("黄色",),
    "green": ("绿色",),
    "cyan": ("青色",),
    "blue": ("蓝色",),
    "purple": ("紫色",),
}
# Before a colour, and between the colour and the shape.
SIZE_WORDS = {"small": ("小的", "小小的"), "large": ("大的", "大大的")}
SHORT_SIZE_WORDS = {"small": ("小",), "large": ("大",)}
BACKGROUND_WORDS = {
    "white": ("白色",),
    "black": ("黑色",),
    "grey": ("灰色",),
    "pink": ("粉色", "粉红色"),
    "brown": ("棕色", "褐色"),
    "navy": ("深蓝色", "藏青色"),
}
RELATION_WORDS = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上方", "上面"),
    "below": ("下方", "下面"),
}
PLACE_WORDS = {
    "top left": ("左上角", "左上方"),
    "top": ("顶部", "正上方"),
    "top right": ("右上角", "右上方"),
    "left": ("左边", "左侧"),
    "centre": ("中央", "中间"),
    "right": ("右边", "右侧"),
    "bottom left": ("左下角", "左下方"),
    "bottom": ("底部", "正下方"),
    "bottom right": ("右下角", "右下方"),
}

_SHAPE = re.compile(any_of(SHAPE_WORDS))
_COLOUR = re.compile(rf"(?:{any_of(COLOUR_WORDS, BACKGROUND_WORDS)})的?")


def without_chinese_colours(caption: str) -> str:
    """`caption` without the names of colours."""
    return _COLOUR.sub("", caption)


def without_chinese_shapes(caption: str) -> str:
    """`caption` without the names of shapes."""
    return _SHAPE.sub("", caption)


def write_chinese(scene: Scene, rng: np.random.Generator, *, omit: float = 0.0) -> str:
    """One of the wordings of `scene`.

    Args:
        scene: What the caption tells.
        rng: The source of every choice.
        omit: Probability with which the background, the place and each size go unmentioned, in
            [0, 1); 0 makes a caption that tells everything.
    """
    if len(scene.objects) == 1:
        subject = _tell_one(scene, rng, omit)
    elif len(scene.objects) == 2:
        subject = _tell_pair(scene, rng, omit)
    else:
        subject = _tell_three(scene, rng, omit)
    if rng.random() < omit:
        return subject
    background = pick(BACKGROUND_WORDS[scene.background], rng)
    wordings = (
        f"{subject}，{background}背景",
        f"{subject}，背景是{background}",
        f"{background}背景上，{subject}",
        f"在{background}的背景上，{subject}",
    )
    return pick(wordings, rng)


def name_object(thing: Object, rng: np.random.Generator, *, omit: float = 0.0) -> str:
    """What an object is called, with its measure word."""
    colour, shape = pick(COLOUR_WORDS[thing.colour], rng), pick(SHAPE_WORDS[thing.shape], rng)
    counted = "一个"
    if shape in _COUNTED_LIKE_STARS and rng.random() < 0.5:
        counted = "一颗"
    if rng.random() < omit:
        return pick((f"{counted}{colour}{shape}", f"{counted}{colour}的{shape}"), rng)
    size, short_size = (pick(words[thing.size], rng) for words in (SIZE_WORDS, SHORT_SIZE_WORDS))
    return pick((f"{counted}{size}{colour}{shape}", f"{counted}{colour}的{short_size}{shape}"), rng)


def name_relation(relation: str, rng: np.random.Generator) -> str:
    """On which side of the other one an object is."""
    return pick(RELATION_WORDS[relation], rng)


def chinese_words() -> tuple[str, ...]:
    """Every word and mark that a caption can hold, sorted."""
    tables = (
        SHAPE_WORDS,
        COLOUR_WORDS,
        SIZE_WORDS,
        SHORT_SIZE_WORDS,
        BACKGROUND_WORDS,
        RELATION_WORDS,
        PLACE_WORDS,
    )
    words = {word for table in tables for wordings in table.values() for word in wordings}
    return tuple(sorted(words | set(_GLUE)))


_GLUE = ("一个", "一颗", "在", "的", "有", "是", "和", "都", "两个", "它们", "背景", "上", "，")


def _tell_one(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    assert scene.place is not None
    thing = name_object(scene.objects[0], rng, omit=omit)
    if rng.random() < omit:
        return thing
    place = pick(PLACE_WORDS[scene.place], rng)
    return pick((f"{thing}在{place}", f"{place}有{thing}", f"{place}是{thing}"), rng)


def _tell_pair(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    assert scene.relation is not None
    first, second = (name_object(thing, rng, omit=omit) for thing in scene.objects[:2])
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE_RELATIONS[relation]
    side = name_relation(relation, rng)
    wordings = (
        f"{first}在{second}的{side}",
        f"{first}在{second}的{side}",
        f"{second}的{side}有{first}",
        f"{second}的{side}是{first}",
    )
    return pick(wordings, rng)


def _tell_three(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    assert scene.relation is not None
    assert scene.third_relation is not None
    third = name_object(scene.objects[2], rng, omit=omit)
    beside = name_relation(scene.third_relation, rng)
    opposite = name_relation(INVERSE_RELATIONS[scene.third_relation], rng)
    wording = rng.integers(5)
    if wording < 3:
        pair = _tell_pair(scene, rng, omit)
        return (
            f"{pair}，{third}在它们的{beside}",
            f"{pair}，它们的{beside}{pick(('有', '是'), rng)}{third}",
            f"{pair}，两个都在{third}的{opposite}",
        )[wording]
    one, other = scene.objects[:2]
    relation = scene.relation
    if rng.random() < 0.5:
        one, other, relation = other, one, INVERSE_RELATIONS[relation]
    pair = f"{name_object(one, rng, omit=omit)}和{name_object(other, rng, omit=omit)}"
    order = (
        f"{pick(COLOUR_WORDS[one.colour], rng)}的在"
        f"{pick(COLOUR_WORDS[other.colour], rng)}的{name_relation(relation, rng)}"
    )
    if wording == 3:
        return f"{third}在{pair}的{beside}，{order}"
    return f"{pair}在{third}的{opposite}，{order}"

"""Other wordings of scenes, in English and Chinese, to score a model on and never to train it on.

The names of things are the grammars' own; how a sentence is built of them is not, and some of the
words between them occur in no caption that is trained on.
"""

import numpy as np

from carrara_models.drawn_world import chinese, english
from carrara_models.drawn_world.english import pick
from carrara_models.drawn_world.scenes import INVERSE_RELATIONS, Scene


def paraphrase_english(scene: Scene, rng: np.random.Generator) -> str:
    """A wording of `scene` that the English grammar never makes."""
    ground = pick(english.BACKGROUND_WORDS[scene.background], rng)
    names = [english.name_object(thing, rng) for thing in scene.objects]
    if len(names) == 1:
        assert scene.place is not None
        place = pick(english.PLACE_WORDS[scene.place], rng)
        wordings: tuple[str, ...] = (
            f"there is {names[0]} {place}, and the background is {ground}",
            f"a {ground} background with {names[0]} {place}",
            f"{place} of a {ground} picture, {names[0]}",
        )
        return pick(wordings, rng)
    one, other, relation = _pair(scene, names, rng)
    side = english.name_relation(relation, rng)
    back = english.name_relation(INVERSE_RELATIONS[relation], rng)
    if len(names) == 2:
        wordings = (
            f"there is {one} {side} {other}, and the background is {ground}",
            f"a {ground} background with {one} {side} {other}",
            f"{one} and, {back} it, {other}, on {ground}",
        )
        return pick(wordings, rng)
    assert scene.third_relation is not None
    third = names[2]
    beside = english.name_relation(scene.third_relation, rng)
    opposite = english.name_relation(INVERSE_RELATIONS[scene.third_relation], rng)
    wordings = (
        f"there is {one} {side} {other}, {third} is {beside} both, and the background is {ground}",
        f"a {ground} background with {one} {side} {other}, {beside} which is {third}",
        f"{opposite} {third} there is {one} {side} {other}, on {ground}",
    )
    return pick(wordings, rng)


def paraphrase_chinese(scene: Scene, rng: np.random.Generator) -> str:
    """A wording of `scene` that the Chinese grammar never makes."""
    ground = pick(chinese.BACKGROUND_WORDS[scene.background], rng)
    names = [chinese.name_object(thing, rng) for thing in scene.objects]
    if len(names) == 1:
        assert scene.place is not None
        place = pick(chinese.PLACE_WORDS[scene.place], rng)
        wordings: tuple[str, ...] = (
            f"背景是{ground}，画面{place}画着{names[0]}",
            f"{names[0]}位于{ground}背景的{place}",
            f"{ground}的画面里，{names[0]}在{place}",
        )
        return pick(wordings, rng)
    one, other, relation = _pair(scene, names, rng)
    side = chinese.name_relation(relation, rng)
    back = chinese.name_relation(INVERSE_RELATIONS[relation], rng)
    if len(names) == 2:
        wordings = (
            f"背景是{ground}，{one}位于{other}的{side}",
            f"{ground}的画面里有{one}，{other}在它的{back}",
            f"{ground}背景，{one}的{back}画着{other}",
        )
        return pick(wordings, rng)
    assert scene.third_relation is not None
    third = names[2]
    beside = chinese.name_relation(scene.third_relation, rng)
    opposite = chinese.name_relation(INVERSE_RELATIONS[scene.third_relation], rng)
    wordings = (
        f"背景是{ground}，{one}位于{other}的{side}，它们{beside}画着{third}",
        f"{ground}的画面里有{third}，{one}位于{other}的{side}，都在它的{opposite}",
        f"在{third}的{opposite}，{one}位于{other}的{side}，{ground}背景",
    )
    return pick(wordings, rng)


def _pair(scene: Scene, names: list[str], rng: np.random.Generator) -> tuple[str, str, str]:
    """The names of the pair in either order, and how the one stands to the other."""
    assert scene.relation is not None
    one, other = names[:2]
    if rng.random() < 0.5:
        return other, one, INVERSE_RELATIONS[scene.relation]
    return one, other, scene.relation

import itertools

import torch

from carrara_models.training.randomness import Draw, chosen_of, normal_of, rng_of


def test_draws_differ_by_seed_purpose_and_place():
    places = itertools.product((0, 3), (Draw.LIST, Draw.EXAMPLE, Draw.NOISE), ((), (5,), (5, 0)))
    streams = [rng_of(seed, draw, *numbers) for seed, draw, numbers in places]
    assert len({int(rng.integers(2**63)) for rng in streams}) == len(streams)


def test_a_row_is_the_same_whoever_draws_it_and_with_whom():
    whole = normal_of(7, Draw.NOISE, range(6), (2, 3))
    assert torch.equal(normal_of(7, Draw.NOISE, [5, 2], (2, 3)), whole[[5, 2]])
    assert abs(whole.mean()) < 0.6


def test_the_share_that_is_chosen_is_the_wanted_one():
    chosen = chosen_of(0, Draw.DROPOUT, range(2000), 0.1)
    assert 0.07 < chosen.float().mean() < 0.13
    assert torch.equal(chosen[500:510], chosen_of(0, Draw.DROPOUT, range(500, 510), 0.1))

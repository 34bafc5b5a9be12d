from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from carrara_models.training.data.examples import MAX_TRIES, PictureSource
from carrara_models.training.data.order import ListOrder
from carrara_models.training.data.pictures import Framing
from carrara_models.training.data.records import DataError, Reason, Record, SkipError
from carrara_models.training.loop import LoopSettings, MicroBatches


@pytest.fixture
def make_source(store, framing):
    """A source of ten pictures, of which those in `broken` cannot be used."""

    def make(*, broken=(), captions=("one", "two"), seed=0, framing=framing, required=True):
        def load(number):
            if number in broken:
                raise SkipError(Reason.UNREADABLE)
            return Record(store(number), tuple(captions))

        return PictureSource(
            ListOrder(range(10), seed=seed),
            load,
            framing=framing,
            seed=seed,
            captions_required=required,
        )

    return make


def test_a_pass_shows_each_picture_once(make_source, numbers_of):
    source = make_source()
    examples = [source.examples(range(5 * step, 5 * step + 5)) for step in range(2)]
    assert sorted(numbers_of(examples[0]) + numbers_of(examples[1])) == list(range(10))
    assert examples[0].pixels.shape == (5, 3, 8, 8)
    assert not examples[0].skipped


def test_a_broken_picture_is_counted_and_changes_no_other(make_source, numbers_of):
    whole, partly = make_source(), make_source(broken={3, 4})
    skipped = Counter()
    for step in range(6):
        wanted, got = (
            numbers_of(whole.examples(range(5 * step, 5 * step + 5))),
            partly.examples(range(5 * step, 5 * step + 5)),
        )
        skipped += got.skipped
        for number, shown in zip(wanted, numbers_of(got), strict=True):
            assert shown not in {3, 4}
            assert shown == number or number in {3, 4}
    assert skipped.keys() == {Reason.UNREADABLE}
    assert skipped[Reason.UNREADABLE] >= 6  # two in each of three passes


def test_a_data_set_that_is_broken_all_over_ends_with_the_reasons(make_source):
    with pytest.raises(DataError, match=f"none of the {MAX_TRIES} .* {MAX_TRIES} cannot be read"):
        make_source(broken=range(10)).examples(range(1))


def test_pictures_without_captions_are_skipped_unless_none_are_needed(make_source):
    with pytest.raises(DataError, match="no caption"):
        make_source(captions=()).examples(range(1))
    examples = make_source(captions=(), required=False).examples(range(2))
    assert examples.captions == ["", ""]


def test_any_of_several_captions_is_taken(make_source):
    source = make_source()
    captions = [
        caption
        for step in range(4)
        for caption in source.examples(range(5 * step, 5 * step + 5)).captions
    ]
    assert set(captions) == {"one", "two"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(make_source, workers):
    framing = Framing(height=8, width=8, crop="random")

    def run(start, stop, workers):
        source = make_source(broken={1, 7}, framing=framing)

        def batch_at(positions):
            examples = source.examples(positions)
            return {"pixels": examples.pixels, "captions": examples.captions}

        batches = MicroBatches(batch_at, LoopSettings(steps=100, batch_size=3, learning_rate=1))
        return list(
            DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=workers)
        )

    whole, resumed = run(0, 12, 0), run(6, 12, workers)
    for expected, got in zip(whole[6:], resumed, strict=True):
        assert torch.equal(expected["pixels"], got["pixels"])
        assert expected["captions"] == got["captions"]


def test_another_seed_is_another_order(make_source, numbers_of):
    rows = {tuple(numbers_of(make_source(seed=s).examples(range(10)))) for s in range(3)}
    assert len(rows) == 3

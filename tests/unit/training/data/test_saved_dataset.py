import datasets
import pytest
import torch

from carrara_models.training.data.bounds import Bound
from carrara_models.training.data.records import DataError, Reason
from carrara_models.training.data.saved_dataset import open_saved_dataset


@pytest.fixture(autouse=True)
def no_cache_and_no_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def dataset(store):
    """Six pictures with captions and a score, the last one null."""
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": store(number), "path": None} for number in range(6)],
            "text": [f"caption {number}" for number in range(6)],
            "score": [0.0, 0.1, 0.2, 0.3, 0.4, None],
        }
    ).cast_column("image", datasets.Image())


def numbers_and_captions(source, numbers_of, *, count):
    examples = source.examples(range(count))
    return dict(zip(numbers_of(examples), examples.captions, strict=True))


EVERY = {number: f"caption {number}" for number in range(6)}


def test_a_saved_data_set_and_its_splits_are_read(tmp_path, dataset, framing, numbers_of):
    dataset.save_to_disk(tmp_path / "one")
    source = open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0)
    assert numbers_and_captions(source, numbers_of, count=6) == EVERY
    with pytest.raises(DataError, match="single split"):
        open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0, split="train")

    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "two")
    source = open_saved_dataset(str(tmp_path / "two"), framing=framing, seed=0, split="train")
    assert numbers_and_captions(source, numbers_of, count=6) == EVERY
    with pytest.raises(DataError, match=r"\['test', 'train'\], not None"):
        open_saved_dataset(str(tmp_path / "two"), framing=framing, seed=0)


def test_arrow_files_are_read_as_they_are(tmp_path, dataset, framing, numbers_of):
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    source = open_saved_dataset(f"{tmp_path}/one/*.arrow", framing=framing, seed=0)
    assert numbers_and_captions(source, numbers_of, count=6) == EVERY


def test_parquet_files_are_read(tmp_path, dataset, framing, numbers_of):
    for part in range(2):
        dataset.shard(2, part).to_parquet(tmp_path / f"train-{part}-of-2.parquet")
    source = open_saved_dataset(f"{tmp_path}/train-{{0,1}}-of-2.parquet", framing=framing, seed=0)
    assert numbers_and_captions(source, numbers_of, count=6) == EVERY


def test_columns_are_named_and_pictures_may_be_plain_bytes(tmp_path, store, framing, numbers_of):
    columns = {"jpg": [store(1), store(2)], "sentences": [["one", "one"], ["two"]]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "one")
    source = open_saved_dataset(
        str(tmp_path / "one"),
        framing=framing,
        seed=0,
        picture_column="jpg",
        caption_column="sentences",
    )
    assert numbers_and_captions(source, numbers_of, count=2) == {1: "one", 2: "two"}
    with pytest.raises(DataError, match="no column image, but"):
        open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0)


def test_bounds_keep_rows_and_a_null_keeps_none(tmp_path, dataset, framing, numbers_of):
    dataset.save_to_disk(tmp_path / "one")

    def opened(*bounds):
        return open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0, bounds=bounds)

    source = opened(Bound("score", minimum=0.15), Bound("score", maximum=0.35))
    assert sorted(numbers_of(source.examples(range(2)))) == [2, 3]
    with pytest.raises(DataError, match="of 6 rows none keeps the bounds: 1 <= score"):
        opened(Bound("score", minimum=1))
    with pytest.raises(DataError, match="text holds no numbers"):
        opened(Bound("text", minimum=1))


def test_broken_rows_are_counted_by_reason(tmp_path, store, cut_short, framing, numbers_of):
    pictures = [
        {"bytes": store(0), "path": None},
        {"bytes": cut_short, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        None,
        {"bytes": store(5), "path": None},
    ]
    dataset = datasets.Dataset.from_dict({"image": pictures, "text": ["a", "b", "c", "d", "e", ""]})
    # As plain columns: the library itself would look for the missing file on saving.
    dataset.save_to_disk(tmp_path / "one")
    source = open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0)
    examples = source.examples(range(6))
    assert set(numbers_of(examples)) == {0}
    assert examples.skipped.keys() == {
        Reason.DAMAGED,
        Reason.EMPTY,
        Reason.UNREADABLE,
        Reason.NO_PICTURE,
        Reason.NO_CAPTION,
    }


def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(tmp_path, dataset, framing):
    dataset.save_to_disk(tmp_path / "one")

    def run(start, stop):
        source = open_saved_dataset(str(tmp_path / "one"), framing=framing, seed=0)
        return [
            source.examples(range(4 * step, 4 * step + 4)).pixels for step in range(start, stop)
        ]

    whole, resumed = run(0, 6), run(3, 6)
    assert all(torch.equal(*pair) for pair in zip(whole[3:], resumed, strict=True))


def test_what_is_missing_or_no_data_set_is_refused(tmp_path, framing):
    with pytest.raises(FileNotFoundError):
        open_saved_dataset(str(tmp_path / "nowhere"), framing=framing, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        open_saved_dataset(str(tmp_path / "empty"), framing=framing, seed=0)
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match="neither"):
        open_saved_dataset(str(tmp_path / "a.csv"), framing=framing, seed=0)

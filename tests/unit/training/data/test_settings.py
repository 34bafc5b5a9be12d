import datasets
import pytest

from carrara_models.training.data.settings import DataSettings, open_source


def opened(settings):
    return open_source(settings, height=8, width=8, seed=0)


def test_the_drawn_world_is_what_is_trained_on_by_default():
    assert opened(DataSettings()).examples(range(2)).pixels.shape == (2, 3, 8, 8)


def test_each_kind_of_data_set_is_opened_by_its_name(tmp_path, store, write_shard):
    (tmp_path / "a.png").write_bytes(store(1))
    (tmp_path / "a.txt").write_text("a one")
    write_shard(tmp_path / "0.tar", [("a.png", store(1)), ("a.txt", b"a one")])
    for location in (f"folder:{tmp_path}", f"shards:{tmp_path}/{{0..0}}.tar"):
        assert opened(DataSettings(location)).examples(range(2)).captions == ["a one"] * 2


def test_a_saved_data_set_is_opened_by_its_name(tmp_path, store):
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_dict({"image": [store(1)], "text": ["a one"]})
    dataset.save_to_disk(tmp_path / "saved")
    source = opened(DataSettings(f"dataset:{tmp_path}/saved"))
    assert source.examples(range(1)).captions == ["a one"]


@pytest.mark.parametrize("location", ["", "nowhere", "folder:", "drawn-world:x", "zip:x"])
def test_a_location_of_no_known_kind_is_refused(location):
    with pytest.raises(ValueError, match="is no data set; known are drawn-world, folder:"):
        opened(DataSettings(location))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (DataSettings(bounds=("similarity>=0.3",)), "bounds"),
        (DataSettings("folder:x", split="train"), "split"),
        (DataSettings("shards:x", omit=0.1), "omit"),
        (DataSettings("dataset:x", shuffle_window=5), "shuffle_window"),
    ],
)
def test_a_setting_that_means_nothing_to_the_data_set_is_refused(settings, name):
    with pytest.raises(ValueError, match=f"{name} means nothing to"):
        opened(settings)

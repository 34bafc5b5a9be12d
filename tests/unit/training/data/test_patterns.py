import pytest

from carrara_models.training.data.patterns import expand_braces, match_files


def test_braces_count_with_their_digits_and_list():
    assert expand_braces("a{08..11}") == ["a08", "a09", "a10", "a11"]
    assert expand_braces("{train,test}-{0..1}.tar") == [
        "train-0.tar",
        "train-1.tar",
        "test-0.tar",
        "test-1.tar",
    ]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("pattern", ["{}", "{a}", "{2..1}", "{0..99999999}", "{000..999}" * 3])
def test_braces_that_name_nothing_or_too_much_are_refused(pattern):
    with pytest.raises(ValueError, match=r"range|counts|more than"):
        expand_braces(pattern)


def test_files_are_found_by_braces_wildcards_and_name(tmp_path):
    for name in ("10.tar", "08.tar", "09.tar"):
        (tmp_path / name).touch()
    in_order = [tmp_path / "08.tar", tmp_path / "09.tar", tmp_path / "10.tar"]
    assert match_files(f"{tmp_path}/{{08..10}}.tar") == in_order
    assert match_files(f"{tmp_path}/*.tar") == in_order
    assert match_files(f"{tmp_path}/09.tar") == in_order[1:2]


@pytest.mark.parametrize("name", ["{08..10}.tar", "*.zip", "8.tar"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "08.tar").touch()
    with pytest.raises(FileNotFoundError, match="no file"):
        match_files(f"{tmp_path}/{name}")


@pytest.mark.parametrize("place", ["https://example.org/0.tar", "pipe:cat 0.tar"])
def test_only_local_files_are_read(place):
    with pytest.raises(ValueError, match="only local files"):
        match_files(place)

import json

import pytest

from carrara_models.training.data.bounds import Bound
from carrara_models.training.data.picture_folder import open_folder
from carrara_models.training.data.records import DataError, Reason


def shown(source, numbers_of, *, count):
    """The number and the caption of each example of the first step."""
    examples = source.examples(range(count))
    return dict(zip(numbers_of(examples), examples.captions, strict=True))


@pytest.fixture
def folder(tmp_path, store):
    """Five pictures: one by each kind of caption file and format, two of them in a sub-folder."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(store(1))
    (tmp_path / "a.txt").write_text("a one\n")
    (tmp_path / "b.v2.WEBP").write_bytes(store(2))
    (tmp_path / "b.v2.caption").write_text("\ufeffa two", encoding="utf-8")
    (tmp_path / "sub/c.png").write_bytes(store(3))
    (tmp_path / "sub/c.txt").write_text("a three")
    (tmp_path / "d.png").write_bytes(store(4))
    (tmp_path / "sub/e.png").write_bytes(store(5))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/f.png").write_bytes(store(6))
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_captions_stand_beside_pictures(folder, framing, numbers_of):
    source = open_folder(folder, framing=framing, seed=0, captions_required=False)
    captions = shown(source, numbers_of, count=5)
    # A WebP is lossy: its red is near 2.
    assert captions.pop(next(n for n in captions if captions[n] == "a two")) == "a two"
    assert captions == {1: "a one", 3: "a three", 4: "", 5: ""}


def test_pictures_without_a_caption_are_counted_and_skipped(folder, framing, numbers_of):
    source = open_folder(folder, framing=framing, seed=0)
    examples = source.examples(range(5))
    assert examples.skipped.keys() == {Reason.NO_CAPTION}
    assert not {4, 5} & set(numbers_of(examples))


def test_captions_stand_in_json_lines_of_any_folder(folder, framing, numbers_of):
    rows = [
        {"file_name": "d.png", "text": "a four"},
        {"file_name": "./a.png", "text": ["one", "one"]},
        {"file_name": "a.png", "text": "one"},
    ]
    write_rows(folder / "metadata.jsonl", rows)
    write_rows(folder / "sub/metadata.jsonl", [{"file_name": "e.png", "text": "a five"}])
    source = open_folder(folder, framing=framing, seed=0)
    captions = shown(source, numbers_of, count=5)
    assert captions | {1: "one", 3: "a three", 4: "a four", 5: "a five"} == captions


def test_captions_stand_in_a_csv_under_a_column_of_choice(folder, framing, numbers_of):
    text = 'file_name,caption,similarity\nd.png,"four, in all",0.4\nsub/e.png,a five,0.2\n'
    (folder / "metadata.csv").write_text(text)
    bounds = [Bound("similarity", minimum=0.3)]
    source = open_folder(folder, framing=framing, seed=0, caption_column="caption", bounds=bounds)
    assert shown(source, numbers_of, count=2) == {4: "four, in all"}


def test_broken_and_missing_pictures_are_skipped_by_reason(
    folder, framing, numbers_of, store, cut_short
):
    (folder / "d.txt").write_bytes("vier, fünf".encode("latin-1"))
    (folder / "cut.jpg").write_bytes(cut_short)
    (folder / "cut.txt").write_text("cut short")
    (folder / "empty.jpg").touch()
    (folder / "empty.txt").write_text("nothing")
    write_rows(folder / "metadata.jsonl", [{"file_name": "gone.png", "text": "gone"}])
    source = open_folder(folder, framing=framing, seed=0)
    examples = source.examples(range(8))
    assert len(examples.captions) == 8
    assert examples.skipped[Reason.NO_CAPTION] >= 2
    assert {Reason.DAMAGED, Reason.EMPTY, Reason.UNREADABLE} <= examples.skipped.keys()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("not json", "row 2: Expecting value"),
        ('{"text": "x"}', "row 2: no file_name"),
        ("[1]", "row 2: no file_name"),
        ('{"file_name": "../x.png"}', "row 2: .* outside"),
        ('{"file_name": "sub/../.."}', "row 2: .* outside"),
        ('{"file_name": "/etc/x.png"}', "row 2: .* outside"),
    ],
)
def test_a_malformed_row_is_named(folder, framing, row, message):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + row + "\n")
    with pytest.raises(DataError, match=message):
        open_folder(folder, framing=framing, seed=0)


def test_a_folder_that_is_missing_or_empty_or_out_of_bounds_is_refused(tmp_path, folder, framing):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_folder(tmp_path / "nowhere", framing=framing, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        open_folder(tmp_path / "empty", framing=framing, seed=0)
    with pytest.raises(DataError, match=r"of 5 pictures .* none keeps .* similarity"):
        open_folder(folder, framing=framing, seed=0, bounds=[Bound("similarity", minimum=0.3)])


def test_a_picture_too_large_to_read_is_skipped(folder, framing, monkeypatch):
    monkeypatch.setattr("carrara_models.training.data.records.MAX_PICTURE_BYTES", 5)
    with pytest.raises(DataError, match="1000 too many bytes"):
        open_folder(folder, framing=framing, seed=0).examples(range(1))

import json
import logging
import tarfile

import pytest
import torch

from carrara_models.training.data.bounds import Bound
from carrara_models.training.data.records import DataError, Reason
from carrara_models.training.data.shards import open_shards, scan

SAFE = (Bound("similarity", minimum=0.3), Bound("punsafe", maximum=0.1))


@pytest.fixture
def shards(tmp_path, store, write_shard):
    """Three shards of four good samples each, as img2dataset writes them."""
    for shard in range(3):
        members = []
        for place in range(4):
            number = 10 * shard + place
            metadata = {
                "similarity": 0.2 + 0.1 * place,
                "punsafe": 0.05 * shard,
                "alt": f"alt {number}",
            }
            key = f"{shard:05d}{place:04d}"
            members += [
                (f"{key}.png", store(number)),
                (f"{key}.txt", f"caption {number}".encode()),
                (f"{key}.json", json.dumps(metadata).encode()),
            ]
        write_shard(tmp_path / f"{shard:05d}.tar", members)
    return tmp_path


@pytest.fixture
def one_shard(tmp_path, write_shard, framing):
    """A source of one shard with the members given."""

    def open_one(members, **options):
        write_shard(tmp_path / "one.tar", members)
        return open_shards(str(tmp_path / "one.tar"), framing=framing, seed=0, **options)

    return open_one


def test_a_pass_shows_each_sample_of_all_shards_once(shards, framing, numbers_of):
    source = open_shards(f"{shards}/{{00000..00002}}.tar", framing=framing, seed=0, window=5)
    row = []
    for step in range(4):
        examples = source.examples(range(3 * step, 3 * step + 3))
        numbers = numbers_of(examples)
        assert examples.captions == [f"caption {number}" for number in numbers]
        row += numbers
    assert sorted(row) == [10 * shard + place for shard in range(3) for place in range(4)]
    assert row != sorted(row)


def test_a_resumed_run_sees_the_same_and_reads_no_earlier_picture(shards, framing, monkeypatch):
    def run(start, stop):
        source = open_shards(f"{shards}/*.tar", framing=framing, seed=0, window=5)
        return [source.examples(range(3 * step, 3 * step + 3)) for step in range(start, stop)]

    whole = run(0, 20)
    read = []
    monkeypatch.setattr(
        "carrara_models.training.data.shards.read_picture",
        lambda file, *, size: read.append(size) or file.read(size),
    )
    resumed = run(13, 20)
    for expected, got in zip(whole[13:], resumed, strict=True):
        assert torch.equal(expected.pixels, got.pixels)
        assert expected.captions == got.captions
    assert len(read) == 7 * 3


def test_bounds_keep_what_the_metadata_allows(shards, framing, numbers_of):
    source = open_shards(f"{shards}/*.tar", framing=framing, seed=0, bounds=SAFE)
    numbers = numbers_of(source.examples(range(9)))
    assert sorted(numbers) == [10 * shard + place for shard in range(3) for place in (1, 2, 3)]
    impossible = [Bound("similarity", minimum=2)]
    with pytest.raises(DataError, match="no picture in any of 3 shards"):
        open_shards(f"{shards}/*.tar", framing=framing, seed=0, bounds=impossible).examples(
            range(1)
        )


def test_with_bounds_a_sample_without_sound_metadata_is_left_out(one_shard, store, numbers_of):
    good = json.dumps({"similarity": 0.5, "punsafe": 0}).encode()
    members = []
    documents = [good, b"{", b"[]", b'{"similarity": 0.5}', b"[" * 100_000, b"\xff"]
    for number, metadata in enumerate(documents):
        members += [(f"{number}.png", store(number)), (f"{number}.json", metadata)]
    members.append(("9.png", store(9)))
    source = one_shard(members, bounds=SAFE, captions_required=False)
    assert set(numbers_of(source.examples(range(4)))) == {0}


def test_captions_may_come_from_the_metadata(shards, framing, numbers_of):
    source = open_shards(f"{shards}/00001.tar", framing=framing, seed=0, caption_column="alt")
    examples = source.examples(range(4))
    assert examples.captions == [f"alt {number}" for number in numbers_of(examples)]


def test_broken_samples_are_counted_by_reason(one_shard, store, cut_short):
    caption = b"a caption"
    members = [
        ("good.png", store(1)),
        ("good.txt", caption),
        ("cut.jpg", cut_short),
        ("cut.txt", caption),
        ("empty.jpg", b""),
        ("empty.txt", caption),
        ("html.jpg", b"<html>"),
        ("html.txt", caption),
        ("mute.jpg", store(2, format="JPEG")),
        ("latin.png", store(3)),
        ("latin.txt", b"f\xfcnf"),
        ("blank.png", store(4)),
        ("blank.txt", b" \n"),
        ("lonely.txt", caption),
        ("small.png", store(5, size=(1, 1))),
        ("._good.png", b"what a Mac leaves behind"),
    ]
    examples = one_shard(members).examples(range(16))
    assert set(examples.captions) == {"a caption"}
    assert examples.skipped.keys() == {
        Reason.DAMAGED,
        Reason.EMPTY,
        Reason.NOT_A_PICTURE,
        Reason.NO_CAPTION,
        Reason.NO_PICTURE,
    }


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pth", "PKL", "embedding.pth"])
def test_a_pickled_member_is_never_read_and_its_sample_skipped(one_shard, store, extension):
    bomb = b"cposix\nsystem\n(S'exit 1'\ntR."
    members = [("0.png", store(0)), ("0.txt", b"a caption"), (f"0.{extension}", bomb)]
    with pytest.raises(DataError, match="1000 has a pickled member"):
        one_shard(members).examples(range(1))


def test_links_and_other_members_that_are_no_files_are_passed_over(tmp_path, store, framing):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("0.png")
            member.type, member.linkname = kind, "/etc/hostname"
            tar.addfile(member)
    assert scan(tmp_path / "one.tar") == []


def test_of_a_shard_that_is_cut_short_the_whole_samples_are_used(
    shards, framing, numbers_of, caplog
):
    shard = shards / "00001.tar"
    third = scan(shard)[2].members["png"][0]
    with shard.open("r+b") as file:
        file.truncate(third + 1)
    with caplog.at_level(logging.WARNING):
        source = open_shards(str(shard), framing=framing, seed=0)
        examples = source.examples(range(6))
    assert set(numbers_of(examples)) == {10, 11}
    assert "is damaged after 3 samples" in caplog.text


def test_a_shard_that_is_no_tar_is_passed_over_and_one_that_vanished_too(
    shards, framing, numbers_of, caplog
):
    (shards / "00000.tar").write_bytes(b"<html>not found</html>" * 100)
    source = open_shards(f"{shards}/*.tar", framing=framing, seed=0)
    (shards / "00002.tar").unlink()
    assert sorted(numbers_of(source.examples(range(4)))) == [10, 11, 12, 13]
    assert "00000.tar is damaged after 0 samples" in caplog.text


def test_missing_shards_and_other_files_are_refused(tmp_path, framing):
    (tmp_path / "0.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match="no file"):
        open_shards(f"{tmp_path}/{{0..3}}.tar", framing=framing, seed=0)
    with pytest.raises(ValueError, match="no uncompressed"):
        open_shards(f"{tmp_path}/0.tar.gz", framing=framing, seed=0)
    with pytest.raises(ValueError, match="only local files"):
        open_shards("https://example.org/{0..3}.tar", framing=framing, seed=0)

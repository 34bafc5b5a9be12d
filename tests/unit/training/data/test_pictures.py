import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carrara_models.training.data.pictures import Framing, frame_picture
from carrara_models.training.data.records import Reason, SkipError

RNG = np.random.default_rng(0)


def stored(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def halves(width, height):
    """Left half black, right half white."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (width // 2, 0, width, height))
    return image


def png_head(width, height):
    """A PNG that says what size it is and holds nothing."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def reason_for(content, framing=None):
    with pytest.raises(SkipError) as caught:
        frame_picture(content, framing or Framing(height=8, width=8), RNG)
    return caught.value.reason


@settings(deadline=None, max_examples=15)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    crop=st.sampled_from(["centre", "random"]),
)
def test_any_picture_gets_the_wanted_size_and_range(size, wanted, format, crop):
    framing = Framing(height=wanted[0], width=wanted[1], crop=crop)
    pixels = frame_picture(stored(halves(*size), format), framing, np.random.default_rng(0))
    assert pixels.shape == (3, *wanted)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_black_is_minus_one_and_white_is_one():
    pixels = frame_picture(stored(halves(16, 16)), Framing(height=16, width=16), RNG)
    assert pixels[:, :, 0].unique().tolist() == [-1]
    assert pixels[:, :, -1].unique().tolist() == [1]


def test_a_centre_crop_keeps_the_middle_and_a_random_one_any_part():
    content = stored(halves(64, 8))
    middle = frame_picture(content, Framing(height=8, width=8), RNG)
    assert middle.mean().abs() < 1e-6
    framing = Framing(height=8, width=8, crop="random")
    rng = np.random.default_rng(0)
    means = [frame_picture(content, framing, rng).mean().item() for _ in range(20)]
    assert min(means) == -1
    assert max(means) == 1


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    image = Image.linear_gradient("L").convert("RGB").resize((1024, 1024))
    framing = Framing(height=32, width=32)
    from_png = frame_picture(stored(image), framing, RNG)
    from_jpeg = frame_picture(stored(image, "JPEG", quality=95), framing, RNG)
    torch.testing.assert_close(from_jpeg, from_png, atol=2 / 127.5, rtol=0)


def test_a_picture_is_turned_as_its_orientation_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it right: the left half becomes the upper one
    content = stored(halves(16, 16), "JPEG", exif=exif)
    pixels = frame_picture(content, Framing(height=16, width=16), RNG)
    assert pixels[0, 0].max() < -0.9
    assert pixels[0, -1].min() > 0.9


def test_what_is_transparent_shows_white():
    image = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
    assert frame_picture(stored(image), Framing(height=8, width=8), RNG).min() == 1
    palette = Image.new("P", (8, 8), 0)
    content = stored(palette, transparency=0)
    assert frame_picture(content, Framing(height=8, width=8), RNG).min() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    content = stored(Image.new(mode, (8, 8)), "JPEG" if mode == "CMYK" else "PNG")
    assert frame_picture(content, Framing(height=8, width=8), RNG).shape == (3, 8, 8)


def test_broken_pictures_are_told_apart(cut_short):
    assert reason_for(b"") == Reason.EMPTY
    assert reason_for(b"<html>no such picture</html>") == Reason.NOT_A_PICTURE
    assert reason_for(cut_short[:20]) == Reason.NOT_A_PICTURE
    assert reason_for(png_head(0, 0)) == Reason.NOT_A_PICTURE
    assert reason_for(cut_short) == Reason.DAMAGED
    assert reason_for(png_head(8, 8)) == Reason.DAMAGED
    deep = Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))
    assert reason_for(stored(deep)) == Reason.NOT_8_BIT


@pytest.mark.parametrize("side", [8193, 10_000, 20_000])
def test_a_decompression_bomb_is_refused_by_what_its_head_says(side):
    # Pillow itself warns of the second and refuses the third.
    assert reason_for(png_head(side, side)) == Reason.TOO_MANY_PIXELS


def test_a_format_that_data_sets_do_not_hold_is_not_read():
    assert reason_for(stored(halves(8, 8), "GIF")) == Reason.NOT_A_PICTURE


def test_small_and_oblong_pictures_are_skipped_where_that_is_wanted():
    framing = Framing(height=8, width=8, min_pixels=200, max_aspect_ratio=2)
    assert reason_for(stored(halves(10, 10)), framing) == Reason.TOO_FEW_PIXELS
    assert reason_for(stored(halves(41, 20)), framing) == Reason.TOO_OBLONG
    assert reason_for(stored(halves(20, 41)), framing) == Reason.TOO_OBLONG
    assert frame_picture(stored(halves(40, 20)), framing, RNG).shape == (3, 8, 8)

"""Small pictures that tell from their colour which of them is which, stored in files and shards."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from carrara_models.training.data.pictures import Framing


@pytest.fixture(scope="session")
def framing():
    return Framing(height=8, width=8)


@pytest.fixture(scope="session")
def store():
    """Stores a picture all over of one red, `number`."""

    def store(number, *, size=(10, 10), format="PNG"):
        file = io.BytesIO()
        Image.new("RGB", size, (number, 0, 0)).save(file, format)
        return file.getvalue()

    return store


@pytest.fixture(scope="session")
def cut_short():
    """A JPEG of noise that ends in the middle."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:-400]


@pytest.fixture(scope="session")
def numbers_of():
    """The numbers of the pictures in examples."""

    def numbers_of(examples):
        return [round((pixels[0, 0, 0].item() + 1) * 127.5) for pixels in examples.pixels]

    return numbers_of


@pytest.fixture(scope="session")
def write_shard():
    """Writes members, a list of names and bytes, as a tar file."""

    def write_shard(path, members):
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write_shard

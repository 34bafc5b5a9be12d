import pytest

from tiny_clip import build_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights: pictures of 32 pixels, captions of 20 tokens, 8 features."""
    return build_clip(tmp_path_factory.mktemp("clip"))

import pytest

from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation import networks
from carrara_models.evaluation.networks import open_network


def test_the_choice_tells_the_network_and_so_its_name(clip_folder, monkeypatch):
    assert open_network(f"drawn-clip:{clip_folder}").space.name == "drawn_clip"
    own = open_network(f"clip:{clip_folder}").space
    assert own.name == f"clip_{own.fingerprint[:8]}"
    monkeypatch.chdir(clip_folder)
    assert open_network("clip:.").space == own


def test_the_drawn_clip_is_found_in_the_checkpoint_that_brings_it(clip_folder, monkeypatch):
    monkeypatch.setattr(networks, "embedded_folder", lambda name: clip_folder.parent)
    monkeypatch.setattr(networks, "COMPONENTS", clip_folder.name)
    assert open_network("drawn-clip").space == open_network(f"drawn-clip:{clip_folder}").space


def test_without_that_checkpoint_it_is_said_what_to_do(monkeypatch):
    def none(name):
        raise KeyError(name)

    monkeypatch.setattr(networks, "embedded_folder", none)
    with pytest.raises(CheckpointError, match="'drawn-unclip', which is not installed"):
        open_network("drawn-clip")


def test_inception_wants_a_file_of_safetensors(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(CheckpointError, match="no safetensors file"):
        open_network(f"inception:{tmp_path / 'weights.pth'}")


@pytest.mark.parametrize("choice", ["clip", "clip:", "resnet:file", ""])
def test_other_choices_are_answered_with_the_known_ones(choice):
    with pytest.raises(
        BadFieldError, match=r"feature_network: .*allowed: drawn-clip, drawn-clip:F"
    ):
        open_network(choice)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        open_network(f"clip:{tmp_path / 'nowhere'}")

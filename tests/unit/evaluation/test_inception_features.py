import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from carrara_models.errors import CheckpointError
from carrara_models.evaluation.inception import InceptionV3
from carrara_models.evaluation.inception_features import WIDTH, load_inception

# Features 0, 256, 512 ... of the two pictures below, with the weights below. 1008 classes: by
# torch-fidelity 0.4.0 from the pictures on. 1000: by torchvision 0.28.0's network and transforms,
# but cropped at row 21, where torchvision rounds the same 21.5 to 22.
RECORDED = {
    1008: """
        0.00144955 1.27510011 0.44773459 0.12229975 0.99405497 0.69534284 0.02016642 0.06640119
        0.00728612 1.23636341 0.41819793 0.08815988 1.01599252 0.70088029 0.01210166 0.08446755
    """,
    1000: """
        0.00291873 1.13958466 0.42547911 0.09582949 0.89425015 0.59514648 0.01427655 0.06887975
        0.00697784 1.04481769 0.44481418 0.04989466 0.92296135 0.60208958 0.01721246 0.06252771
    """,
}


def unit_numbers(count, *, seed):
    """Numbers in [0, 1) by integer arithmetic alone, so that they are equal on every machine."""
    mixed = np.arange(count, dtype=np.uint32) + np.uint32(seed * 7919 + 1)
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x45D9F3B)
    mixed ^= mixed >> np.uint32(16)
    return (mixed >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


def made_up_weights(*, classes):
    """Weights that keep activations near 1 through all layers."""
    with torch.device("meta"):
        network = InceptionV3(padded_mean=False, last_pool="max")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes |= {"fc.weight": (classes, WIDTH), "fc.bias": (classes,)}
    tensors = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            continue
        numbers = torch.from_numpy(unit_numbers(int(np.prod(shape)), seed=seed)).reshape(shape)
        if len(shape) > 1:
            tensors[name] = (numbers - 0.5) * (24 / np.prod(shape[1:])) ** 0.5
        else:
            positive = name.endswith(("bn.weight", "running_var"))
            tensors[name] = numbers * 0.4 + 0.8 if positive else (numbers - 0.5) * 0.2
    return tensors


def two_pictures():
    """Smooth enough to resize, and neither square nor of the network's size."""
    noise = (unit_numbers(2 * 6 * 8 * 3, seed=9000) * 256).astype(np.uint8).reshape(2, 6, 8, 3)
    return noise.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def weights():
    return made_up_weights(classes=1008)


@pytest.mark.parametrize(
    ("classes", "name"), [(1008, "inception"), (1000, "inception_torchvision")]
)
def test_features_are_those_of_the_published_implementations(classes, name, tmp_path):
    file = tmp_path / "inception.safetensors"
    save_file(made_up_weights(classes=classes), file)
    network = load_inception(file)
    file.unlink()  # 95 MB
    assert (network.space.name, network.space.width) == (name, WIDTH)
    features = network.extract(two_pictures())
    assert features.values.shape == (2, WIDTH)
    # Made on another machine than some that run this; measured there: 1e-6.
    recorded = np.array(RECORDED[classes].split(), dtype=np.float32).reshape(2, 8)
    assert np.allclose(features.values[:, ::256], recorded, atol=1e-4)


def test_the_fingerprint_is_of_the_tensors_in_use(weights, tmp_path):
    file = tmp_path / "inception.safetensors"

    def fingerprint(**changes):
        save_file(weights | changes, file)
        return load_inception(file).space.fingerprint

    original = fingerprint()
    bias = "Mixed_7c.branch1x1.bn.bias"
    assert fingerprint(**{"fc.bias": torch.ones(1008)}) == original
    assert fingerprint(**{bias: weights[bias] + 1}) != original
    file.unlink()


def test_what_is_no_inception_is_refused_with_what_to_do(weights, tmp_path):
    pickled = tmp_path / "weights-inception.pth"
    pickled.write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=r"never loaded because it can run code\. Convert it"):
        load_inception(pickled)
    file = tmp_path / "inception.safetensors"
    with pytest.raises(CheckpointError, match="is missing"):
        load_inception(file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="is broken"):
        load_inception(file)
    save_file({"fc.weight": torch.zeros(10, 4)}, file)
    with pytest.raises(CheckpointError, match="10 classes; known: 1008"):
        load_inception(file)
    fc = {"fc.weight": weights["fc.weight"]}
    save_file(fc, file)
    with pytest.raises(CheckpointError, match=r"lacks 470 tensors, Conv2d_1a_3x3\.bn\.bias"):
        load_inception(file)
    save_file(weights | {"Mixed_7c.branch1x1.bn.bias": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="tensors of other shapes"):
        load_inception(file)
    file.unlink()

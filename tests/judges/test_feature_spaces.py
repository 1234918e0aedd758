"""Radiomics, the chest space, and feature spaces from other people's files."""

import json
import warnings

import numpy as np
import pytest
import torch

from synthorax.errors import InputError, SynthoraxError, UsageError
from synthorax.judges.chest import fit_chest_features
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.features import load_features
from synthorax.judges.radiomics import NAMES, RadiomicsFeatures, co_occurrence
from synthorax.types import ImageSet, Study


def of(image):
    return dict(zip(NAMES, RadiomicsFeatures()(image[None])[0].tolist(), strict=True))


def test_flat_image_has_no_texture():
    flat = of(np.full((32, 32), 128, np.uint8))
    assert flat["deviation"] == flat["entropy"] == flat["contrast 1 px"] == flat["gradient mean"] == 0
    assert flat["homogeneity 4 px"] == flat["energy 1 px"] == 1 and flat["mean"] == pytest.approx(128 / 255)


def test_stripes_are_counted_by_hand():
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    table = co_occurrence((stripes // 8).astype(int), distance=1)
    # Of four directions only the vertical one stays within a stripe.
    down, across = 31 * 32, 32 * 31 + 2 * 31 * 31
    assert table[0, 0] + table[31, 31] == pytest.approx(down / (down + across)) and table.sum() == pytest.approx(1)
    seen = of(stripes)
    assert seen["entropy"] == 1.0 and seen["contrast 1 px"] == pytest.approx(31**2 * across / (down + across))
    assert seen["contrast 4 px"] == 0 and seen["correlation 4 px"] == pytest.approx(1)


def test_eight_and_sixteen_bits_agree():
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32)).astype(np.uint8)
    space = RadiomicsFeatures()
    assert np.allclose(space(image), space(image.astype(np.uint16) * 257), atol=1e-5)


class Sums(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)


def saved(folder, name, contract=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # how others have saved their networks
        torch.jit.save(torch.jit.script(Sums()), str(folder / name))
    if contract is not None:
        (folder / name).with_suffix(".json").write_text(json.dumps(contract))
    return str(folder / name)


def test_a_torchscript_file_sees_images_as_its_contract_says(tmp_path):
    path = saved(tmp_path, "net.pt", contract={"input_px": 16, "channels": 1, "low": -1024, "high": 1024})
    space = load_features(path)
    assert space.name == "net" and space.num_features == 2
    white, black = space(np.full((1, 64, 64), 255, np.uint8))[0], space(np.zeros((1, 64, 64), np.uint8))[0]
    assert white[0] == pytest.approx(1024) and black[0] == pytest.approx(-1024)
    other = load_features(saved(tmp_path, "other.pt", contract={"input_px": 16, "channels": 1}))
    assert other.digest != space.digest  # another contract is another space
    assert load_features(saved(tmp_path, "plain.pt")).num_features == 6  # three channels, as ImageNet


@pytest.mark.parametrize(("contract", "word"), [
    ({"channels": 2, "mean": [0.0]}, "numbers"), ([1], "contract"), ({"std": [0, 1, 1]}, "std")])
def test_a_wrong_contract_is_refused(tmp_path, contract, word):
    with pytest.raises(InputError, match=word):
        load_features(saved(tmp_path, "net.pt", contract=contract))


def test_files_and_names_that_do_not_work_say_why(tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no network")
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="TorchScript"):
        load_features(str(tmp_path / "no.pt"))
    with pytest.raises(InputError, match="no such file"):
        load_features(str(tmp_path / "absent.onnx"))
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"synthorax\[onnx\]"):
            load_features(str(tmp_path / "no.onnx"))
    try:
        import torchxrayvision  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="torchxrayvision"):
            load_features("torchxrayvision")
    with pytest.raises(SynthoraxError, match="real training images"):
        load_features("chest")


def test_the_chest_space_sees_what_it_was_trained_on():
    rng = np.random.default_rng(0)
    images = rng.integers(60, 100, (40, 32, 32)).astype(np.uint8)
    ill = np.arange(40) % 2 == 0
    images[ill, 8:16, 8:16] += 90
    image_set = ImageSet(pixels=images, studies=tuple(Study(file_name=f"{i}.png") for i in range(40)), findings=("Mass",),
                  labels=ill[:, None].astype(np.float32), digest="d")
    config = ClassifierConfig(updates=40, batch_size=16, width=8, input_size=32)
    space = fit_chest_features(image_set, seed=0, config=config)
    features = space(images)
    assert features.shape == (40, space.num_features) and features.dtype == np.float32
    gap = np.linalg.norm(features[ill].mean(0) - features[~ill].mean(0))
    assert gap > features[ill].std(0).mean()
    assert fit_chest_features(image_set, seed=0, config=config).digest == space.digest
    plain = load_features("radiomics", train=image_set)
    assert np.allclose(plain(images).mean(axis=0), 0, atol=1e-2) and plain(images).std(axis=0).max() == pytest.approx(1, abs=1e-2)
    assert plain.digest != load_features("radiomics").digest
    nothing = ImageSet(pixels=images, studies=image_set.studies, findings=("Mass",), labels=np.full((40, 1), np.nan, np.float32),
                       digest="d")
    with pytest.raises(InputError, match="no chest classifier"):
        fit_chest_features(nothing, seed=0)

"""The segmenter: outlines what can be outlined, repeats itself exactly, and never learns from outlines that are not stated."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from synthorax.errors import InputError, UsageError
from synthorax.judges import segmenter as judge
from synthorax.judges.fitting import standardise, vary
from synthorax.judges.segmenter import SegmenterConfig, dice, iou, load_segmenter, save_segmenter, train_segmenter

TINY = SegmenterConfig(updates=25, batch_size=16, width=8, learning_rate=1.5e-2, autocast=False)
CLASSES = ("bright", "dark")


def discs(seed, *, n=64, size=32):
    """Noise with a bright disc, a dark one, both or neither anywhere, and the outlines of either kind."""
    rng = np.random.default_rng(seed)
    images = rng.normal(110, 12, (n, size, size))
    masks = np.zeros((n, 2, size, size), bool)
    y, x = np.mgrid[:size, :size]
    for image in range(n):
        for kind, step in enumerate((60, -60)):
            if rng.random() < 0.6:
                centre = size * rng.uniform(0.2, 0.8, 2)
                masks[image, kind] = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (size * rng.uniform(0.10, 0.18)) ** 2
                images[image, masks[image, kind]] += step
    return images.clip(0, 255).astype(np.uint8), masks


def train(images, masks, *, seed=0, stated=None, patients=None, **changes):
    return train_segmenter(images, masks, classes=CLASSES[: masks.shape[1]], config=replace(TINY, **changes), seed=seed, stated=stated,
                           patients=patients)


@pytest.fixture(scope="module")
def trained():
    return train(*discs(0), updates=80)


def test_it_segments_discs_and_keeps_their_classes_apart(trained):
    images, masks = discs(1)
    outlines = trained.outline(images)
    own = np.nanmean(iou(masks, outlines), axis=0)
    crossed = np.nanmean(iou(masks, outlines[:, ::-1]), axis=0)
    assert own.min() > 0.7 and crossed.max() < 0.2


def test_probabilities_are_probabilities_and_masks_their_cut(trained):
    images, _ = discs(1, n=6)
    probabilities = trained(images)
    assert probabilities.shape == (6, 2, 32, 32) and probabilities.dtype == np.float32
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    assert np.array_equal(trained.outline(images)[:, 1], probabilities[:, 1] >= np.float32(trained.thresholds[1]))


def test_same_seed_same_weights_and_other_seed_other_weights():
    first, again, other = train(*discs(0), updates=4), train(*discs(0), updates=4), train(*discs(0), updates=4, seed=1)
    assert first.digest == again.digest != other.digest
    torch.manual_seed(99)
    assert train(*discs(0), updates=4).digest == first.digest


def test_prediction_does_not_depend_on_the_batch(trained):
    images, _ = discs(1)
    alone = np.concatenate([trained(image[None]) for image in images[:4]])
    assert np.allclose(alone, trained(images)[:4], atol=1e-6)


def test_masks_that_are_not_stated_change_nothing():
    """Two sets whose outlines differ only where they are not stated train the same weights."""
    images, masks = discs(0)
    stated = np.ones((64, 2), bool)
    stated[::2, 1] = False
    spoilt = masks.copy()
    spoilt[::2, 1] = ~spoilt[::2, 1]
    assert train(images, masks, stated=stated, updates=4).digest == train(images, spoilt, stated=stated, updates=4).digest
    assert train(images, masks, updates=4).digest != train(images, spoilt, updates=4).digest


def test_a_stated_empty_mask_is_learned_from(trained):
    images, masks = discs(0)
    never = masks.copy()
    never[:, 1] = False
    learnt = train(images, never, updates=40)
    assert learnt(images)[:, 1].max() < 0.5 < trained(images)[:, 1].max()


def test_held_out_patients_choose_the_thresholds_and_train_nothing():
    images, masks = discs(0)
    patients = np.array([f"p{number // 4}" for number in range(64)])
    held = judge._held_out(64, patients, share=0.1, seed=3)
    assert held.sum() == 8 and len(set(patients[held]) & set(patients[~held])) == 0
    spoilt = masks.copy()
    spoilt[held] = False  # nothing to see there, so there is no best cut
    first, other = (train(images, chosen, seed=3, patients=patients, updates=4) for chosen in (masks, spoilt))
    assert all(torch.equal(a, b) for a, b in zip(first.network.state_dict().values(), other.network.state_dict().values(), strict=True))
    assert other.thresholds == (0.5, 0.5) != first.thresholds


def test_the_threshold_is_the_cut_with_the_largest_overlap():
    class Constant(torch.nn.Module):
        """Probability 0.3 in the left half and 0.6 in the right, whatever the image."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            chance = torch.full((len(images), 1, 8, 8), 0.3)
            chance[..., 4:] = 0.6
            return torch.logit(chance)

    images, right = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1, 8, 8), bool)
    right[..., 4:] = True
    chosen = {name: judge._thresholds(Constant(), images, mask, np.ones((2, 1), bool), config=TINY)[0]
              for name, mask in (("right", right), ("all", np.ones_like(right)), ("none", np.zeros_like(right)))}
    assert 0.3 < chosen["right"] <= 0.6 and chosen["all"] <= 0.3 and chosen["none"] == 0.5


def test_augmentation_moves_image_and_outline_together_and_never_mirrors_them():
    image = np.zeros((32, 32, 32), np.uint8)
    image[:, 8:24, 4:12] = 200
    images, outlines = standardise(image, size=32), judge._targets(image[:, None] > 0, size=32)
    moved, carried = vary(images, outlines, by=judge.SLIGHT, generator=torch.Generator().manual_seed(0))
    assert (moved[..., :16].mean(dim=(1, 2, 3)) > moved[..., 16:].mean(dim=(1, 2, 3)) + 0.5).all()
    bright = moved > 0.5 * moved.amax(dim=(2, 3), keepdim=True)
    assert np.nanmean(iou(bright.numpy(), (carried > 0.5).numpy())) > 0.9
    assert (carried - outlines).abs().mean() > 0.005


def test_rare_masks_are_sampled_more_often_and_count_for_more():
    drawn = np.zeros((100, 2), bool)
    drawn[:50, 0], drawn[:4, 1] = True, True
    weights = judge._rarity(drawn, np.ones_like(drawn), power=0.5)
    assert weights[0] == pytest.approx(5) and weights[10] == pytest.approx(math.sqrt(2)) and weights[99] == 1
    masks = np.zeros((2, 2, 10, 10), bool)
    masks[:, 0, :5], masks[:, 1, 0, :4] = True, True
    assert judge._emphasis(masks, np.ones((2, 2), bool)).tolist() == pytest.approx([1, math.sqrt(24)])


def test_the_loss_is_small_only_for_the_right_mask():
    target = torch.zeros(2, 1, 8, 8)
    target[:, :, :4] = 1
    stated, emphasis = torch.ones(2, 1, dtype=torch.bool), torch.ones(1)
    losses = {name: judge.outline_loss(logits, target, stated, emphasis).item()
              for name, logits in (("right", 20 * target - 10), ("empty", torch.full_like(target, -10)), ("wrong", 10 - 20 * target))}
    assert losses["right"] < 0.02 < losses["empty"] < losses["wrong"]


def test_a_saved_segmenter_is_the_same_and_a_changed_file_is_refused(trained, tmp_path):
    path = tmp_path / "judge.safetensors"
    save_segmenter(path, trained)
    again = load_segmenter(path)
    images, _ = discs(1, n=5)
    assert (again.digest, again.name, again.thresholds) == (trained.digest, trained.name, trained.thresholds)
    assert np.array_equal(again(images), trained(images))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="SHA-256"):
        load_segmenter(path)


def test_sixteen_bits_and_exposure_do_not_matter(trained):
    images, _ = discs(1, n=8)
    assert np.allclose(trained(images.astype(np.uint16) * 257), trained(images), atol=1e-4)
    assert np.allclose(trained(images // 2), trained(images), atol=0.15)


@pytest.mark.parametrize(("size", "input_size", "autocast"), [(8, 64, False), (33, 64, False), (64, 32, False), (16, 16, True)])
def test_other_sizes_and_bfloat16(size, input_size, autocast):
    images, masks = discs(0, n=16, size=size)
    result = train(images, masks, updates=2, input_size=input_size, autocast=autocast)
    assert result(images).shape == masks.shape and np.isfinite(result(images)).all()


def test_overlap_of_masks_by_hand():
    first, second = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    first[0, :2], second[0, 1:3] = True, True  # 8 and 8 pixels, 4 in both
    second[1, 0, 0] = True
    assert iou(first, second)[:2].tolist() == [4 / 12, 0] and dice(first, second)[:2].tolist() == [0.5, 0]
    assert math.isnan(iou(first, second)[2]) and math.isnan(dice(first, second)[2])
    assert iou(first, first)[0] == dice(first, first)[0] == 1


@pytest.mark.parametrize(("change", "said"), [
    (lambda f, m: (f[0], m), "N, S, S"), (lambda f, m: (f.astype(float), m), "uint8"), (lambda f, m: (f, m[:, :, :16]), "do not fit"),
    (lambda f, m: (f, m[:5]), "do not fit"),
])
def test_shapes_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        train(*change(*discs(0, n=8)))


def test_other_wrong_use_is_refused(trained):
    images, masks = discs(0, n=8)
    with pytest.raises(UsageError, match="32 px and got 16"):
        trained(images[:, :16, :16])
    with pytest.raises(UsageError, match="no stated outline"):
        train(images, masks, stated=np.tile([True, False], (8, 1)))
    with pytest.raises(UsageError, match="patients for"):
        train(images, masks, patients=["a", "b"])
    with pytest.raises(UsageError, match="at least 1 of 2"):
        train(images, masks, batch_size=1)

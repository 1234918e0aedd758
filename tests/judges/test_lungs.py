"""Lungs and hearts: outlines of any size, sides by place, pieces, boxes."""

import numpy as np
import pytest
import torch

from synthorax.data.phantom import PhantomSpec, draw_phantom, draw_whole_lungs
from synthorax.errors import InputError, UsageError
from synthorax.judges import lungs as lungs_module
from synthorax.judges.lungs import STRUCTURES, LungMasks, boxes_of, load_lung_model, outline, segment_lungs
from synthorax.judges.residual import initialise
from synthorax.judges.segmenter import SegmentationNetwork, Segmenter, SegmenterConfig, save_segmenter


def untrained(classes=STRUCTURES):
    network = SegmentationNetwork(num_classes=len(classes), width=4, input_size=32)
    initialise(network, head=network.head, bias=0.1, generator=torch.Generator().manual_seed(0))
    return Segmenter(name="untrained", digest="0", classes=classes, thresholds=(0.5,) * len(classes), image_size=32,
                     config=SegmenterConfig(width=4, input_size=32), network=network.eval())


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 100, 80), (3, 31, 57), (1, 20, 20), (1, 256, 300)])
def test_outlines_have_the_size_of_the_image(shape):
    images = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    found = segment_lungs(images, model=untrained())
    assert len(found) == shape[0]
    for masks in (found.right, found.left, found.heart, found.both):
        assert masks.shape == shape and masks.dtype == bool
    assert not (found.right & found.left).any()
    assert found.frame().right.shape == (shape[0], 4)


def test_an_image_does_not_depend_on_its_batch_or_its_bits():
    images = np.random.default_rng(1).integers(0, 256, (40, 48, 48)).astype(np.uint8)
    model = untrained()
    together = segment_lungs(images, model=model)
    alone = segment_lungs(images[37:38], model=model)
    deep = segment_lungs(images.astype(np.uint16) * 257, model=model)
    assert (together.both[37] == alone.both[0]).all() and (together.heart == deep.heart).mean() > 0.999


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 8), np.uint8)])
def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(UsageError, match="uint8 or uint16"):
        outline(pixels, model=untrained())


def test_boxes_are_edges_and_empty_ones_are_unknown():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, 2:5, 7:11] = True
    boxes = boxes_of(masks)
    assert boxes[0].tolist() == [7, 2, 11, 5] and np.isnan(boxes[1]).all()
    frame = LungMasks(right=masks, left=masks[::-1], heart=masks).frame()
    assert frame.both[0].tolist() == [7, 2, 11, 5] and frame.both[1].tolist() == [7, 2, 11, 5]


def two_lungs(*, mirrored=False):
    """Probabilities of a right and a left lung as two boxes, [1, 32, 32] each."""
    right, left = np.zeros((2, 1, 32, 32), np.float32)
    right[0, 5:25, 3:13], left[0, 5:25, 18:28] = 0.9, 0.9
    return (left, right) if mirrored else (right, left)


def test_a_mirrored_image_is_seen_and_its_sides_are_still_those_of_the_place():
    assert lungs_module._mirrored(*two_lungs(), cut=0.5)[0] == 0
    assert lungs_module._mirrored(*two_lungs(mirrored=True), cut=0.5)[0] == 1
    nothing = np.zeros((1, 32, 32), np.float32)
    assert lungs_module._mirrored(nothing, nothing, cut=0.5)[0] == 0


def test_a_piece_of_lung_is_on_one_side_and_two_that_touch_are_cut():
    right, left = two_lungs()
    left[0, 5:25, 14:18] = 0.9  # the left lung reaches over the midline
    sides = lungs_module._sides(right, left, cut=0.5)[0]
    assert (sides[5:25, 3:13] == 0).all() and (sides[5:25, 14:28] == 1).all()
    left[0, 10:12, 13:14] = 0.9  # now they touch
    sides = lungs_module._sides(right, left, cut=0.5)[0]
    assert (sides[5:25, 3:12] == 0).all() and (sides[5:25, 18:28] == 1).all()


def test_crumbs_and_holes_are_no_part_of_an_outline():
    mask = np.zeros((64, 64), bool)
    mask[10:40, 10:30], mask[20:22, 15:18], mask[60, 60] = True, False, True
    cleaned = lungs_module._largest(mask)
    assert cleaned[10:40, 10:30].all() and not cleaned[60, 60]
    assert not lungs_module._largest(np.eye(64, dtype=bool) & (np.arange(64) < 4)).any()


def test_whole_lungs_of_a_phantom_hold_the_part_behind_the_heart():
    spec = PhantomSpec(seed=3)
    image, whole = draw_phantom(spec, size=128), draw_whole_lungs(spec, size=128)
    heart, seen = image.masks["heart"] > 0, image.masks["lung"] > 0
    both = whole["right"] | whole["left"]
    assert (both & ~heart == seen).mean() > 0.999
    assert (whole["left"] & heart).sum() > (whole["right"] & heart).sum() > 0
    assert np.flatnonzero(whole["right"].any(axis=0)).mean() < 64 < np.flatnonzero(whole["left"].any(axis=0)).mean()


def test_a_lung_model_is_found_by_path_and_another_judge_is_refused(tmp_path, monkeypatch):
    save_segmenter(tmp_path / "lungs.safetensors", untrained(), half=True)
    assert load_lung_model(tmp_path / "lungs.safetensors").classes == STRUCTURES
    save_segmenter(tmp_path / "other.safetensors", untrained(("nodule",)))
    with pytest.raises(InputError, match="a lung model outlines right lung"):
        load_lung_model(tmp_path / "other.safetensors")

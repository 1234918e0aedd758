"""Sets of images put in a row: nothing is lost, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthorax.errors import UsageError
from synthorax.types import ImageSet, Masks, Study


def images(num: int, *, grey: int, name: str, masks: int = 0) -> ImageSet:
    """`num` images of one grey level; the last `masks` have a lung mask, the first is stated to have none."""
    index = np.full((num, 1), Masks.NOTHING_THERE, dtype=np.int32)
    index[num - masks :, 0] = np.arange(masks)
    return ImageSet(pixels=np.full((num, 4, 4), grey, dtype=np.uint8), labels=np.full((num, 1), grey % 2, dtype=np.float32), digest=name,
                    studies=tuple(Study(file_name=f"{name}{number}.png") for number in range(num)), findings=("Mass",),
                    masks=Masks(names=("lung",), pixels=np.full((masks, 4, 4), grey, dtype=np.uint8), index=index),
                    lesions=np.full((num, 1, 7), float(grey), dtype=np.float32))


FIRST, SECOND = images(2, grey=3, name="a", masks=1), images(3, grey=8, name="b", masks=2)


def test_sets_stand_in_a_row_with_their_own_labels_masks_and_lesions() -> None:
    whole = ImageSet.join([FIRST, SECOND])
    assert [study.file_name for study in whole.studies] == ["a0.png", "a1.png", "b0.png", "b1.png", "b2.png"]
    assert whole.pixels[:, 0, 0].tolist() == [3, 3, 8, 8, 8] and whole.labels[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert whole.masks is not None and whole.lesions is not None
    assert whole.masks.index[:, 0].tolist() == [Masks.NOTHING_THERE, 0, Masks.NOTHING_THERE, 1, 2]
    assert whole.masks.pixels[whole.masks.index[[1, 3, 4], 0], 0, 0].tolist() == [3, 8, 8]
    assert whole.lesions[:, 0, 0].tolist() == [3, 3, 8, 8, 8]
    assert whole.digest == "a" and ImageSet.join([FIRST, SECOND], digest="whole").digest == "whole"


def test_masks_and_lesions_are_kept_only_where_every_part_has_them() -> None:
    whole = ImageSet.join([FIRST, replace(SECOND, masks=None, lesions=None)])
    assert whole.masks is None and whole.lesions is None and len(whole) == 5


@pytest.mark.parametrize(("other", "reason"), [
    (replace(SECOND, pixels=SECOND.pixels[:, :2, :2]), "size"), (replace(SECOND, pixels=SECOND.pixels.astype(np.uint16)), "bits"),
    (replace(SECOND, findings=("Nodule",)), "findings"),
    (replace(SECOND, masks=Masks(names=("heart",), pixels=SECOND.pixels, index=np.zeros((3, 1), dtype=np.int32))), "masks")])
def test_sets_that_do_not_fit_are_refused(other: ImageSet, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ImageSet.join([FIRST, other])


def test_no_set_is_no_set() -> None:
    with pytest.raises(UsageError, match="no set of images"):
        ImageSet.join([])

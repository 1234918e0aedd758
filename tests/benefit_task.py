"""A classification task whose truth is known, with generated images that are good, mislabelled or of nothing."""

import numpy as np

from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.judges.classifier import ClassifierConfig
from synthorax.types import ImageSet, Study

QUICK = BenefitConfig(classifier=ClassifierConfig(updates=50, batch_size=16, width=16, learning_rate=0.01, autocast=False),
                      resamples=300, synthetic_only=False, probe=False).brief()


def images(seed, *, present, absent, name, origin="real", images_per_patient=1, right_label=True, signal=45.0):
    """`present` images with a disc (finding Mass), `absent` without; every third image, of both kinds, has a bar (Effusion)."""
    rng, number = np.random.default_rng(seed), present + absent
    images = rng.normal(100, 25, (number, 32, 32))
    mass, effusion = np.arange(number) < present, np.arange(number) % 3 == 0
    y, x = np.mgrid[:32, :32]
    images[mass] += signal * ((x - 22) ** 2 + (y - 10) ** 2 < 16)
    images[effusion] += signal * (y > 28)
    labels = np.stack([effusion, mass == right_label], axis=1).astype(np.float32)
    studies = tuple(Study(file_name=f"{name}{i}.png", patient_id=f"{name}{i // images_per_patient}" if origin == "real" else "",
                          origin=origin) for i in range(number))
    return ImageSet(pixels=images.clip(0, 255).astype(np.uint8), studies=studies, findings=("Effusion", "Mass"), labels=labels,
                 digest=name)


def synthetic(seed=3, **changes):
    return images(seed, **{"present": 60, "absent": 60, "name": "made", "origin": "synthetic", **changes})


TRAIN = images(1, present=4, absent=76, name="train")
TEST = images(2, present=100, absent=150, name="test")

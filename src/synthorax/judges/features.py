"""Feature spaces: what turns films into the vectors that fidelity and diversity are measured on."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from synthorax.registry import lookup


class FeatureSpace(Protocol):
    """A frozen network that describes films; a score names it, and a report records its digest.

    Input contract: grey films [N, S, S], uint8 or uint16, full range of the type, bone bright; any S, which the space
    resizes by itself. Same film, same features, whatever the batch (up to float32 rounding). Compare two sets through
    one space and at one film size only: a 64 px film is blurred to any network, and blur is what FID sees first.
    """

    @property
    def name(self) -> str:
        """Short name that scores carry."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""

    @property
    def num_features(self) -> int:
        """F, the length of a film's vector."""

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Films [N, S, S] to features [N, F]."""


FEATURES = {
    "efficientnet-lite0": "synthorax.judges.efficientnet_lite:EfficientNetLite0Features",
}


def load_features(name: str) -> FeatureSpace:
    """The feature space called `name`; an unknown name is an error that lists the choices.

    >>> load_features("efficientnet-lite0").num_features
    1280
    """
    return cast(FeatureSpace, lookup(FEATURES, name, kind="feature space")())

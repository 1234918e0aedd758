"""Progressive distillation: the estimate with which one step of a student replaces several steps of its teacher."""

from __future__ import annotations

from torch import Tensor


def student_levels(teacher_levels: Tensor, *, substeps: int) -> Tensor:
    """Every `substeps`-th of the teacher's falling levels [N * substeps + 1], the final 0 among them, [N + 1].

    >>> import torch
    >>> student_levels(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), substeps=2)
    tensor([8., 2., 0.])
    """
    return teacher_levels[::substeps]


def landing_target(x: Tensor, landed: Tensor, *, sigma: float, sigma_next: float) -> Tensor:
    """The estimate of the image with which one step of ddim from level `sigma` at x goes to `landed` at level `sigma_next`.

    That step is D + (sigma_next / sigma) (x - D), solved for D: Algorithm 2 of Salimans and Ho 2022 with alpha = 1. The target of a step to
    0 is the image on which the teacher lands. Both tensors are [B, C, *S], and `sigma_next` is below `sigma`.
    """
    kept = sigma_next / sigma
    return (landed - kept * x) / (1 - kept)


def snr_weight(sigma: Tensor, *, sigma_data: float) -> Tensor:
    """SNR + 1 in units of the images' variance, [B]: 1 / sigma^2 + 1 / sigma_data^2 (Sec. 4, Salimans and Ho 2022).

    It does not vanish at high noise, where a student of few steps decides most, as the weight of "eps" would. For "edm" it is the
    output weight.
    """
    return sigma**-2 + sigma_data**-2

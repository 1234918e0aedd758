"""Codes of films: those of generated films are found again."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from synthorax.errors import UsageError
from synthorax.protocols import as_model
from synthorax.tasks.code_search import CodeSearchConfig, find_codes
from trainings import fresh_objective, smallest

SEARCH = CodeSearchConfig(steps=300, candidates=32)


def generator(family: str) -> nn.Module:
    """A generator whose films differ by code: its normalisation has seen some features, and the last layer is loud."""
    model = fresh_objective(smallest(family, "model.conditioning=none")).model
    with torch.no_grad():
        if family == "gan":
            cast(Any, model).generator.last.weight.mul_(4.0)
            for seed in range(30):  # running statistics of batch normalisation
                codes = [torch.randn(64, *size, generator=torch.Generator().manual_seed(seed)) for size in cast(Any, model).code_sizes]
                cast(Any, model.train()).film_of(codes, None)
    return model.eval()


@pytest.mark.parametrize("family", ["gan", "stylegan2"])
def test_the_code_of_a_made_film_is_found_again(family: str) -> None:
    model = cast(Any, generator(family))
    films = model.sample(None, [1, 2, 3])
    if family == "stylegan2":
        codes = [torch.randn(3, *size, generator=torch.Generator().manual_seed(7)) for size in model.code_sizes]
        films = model.film_of(codes, None).detach()
    others = films.roll(1, 0)
    strangers = 10 * torch.log10(4 / (films - others).square().mean((1, 2, 3)))
    found = find_codes(model, films, seeds=[10, 11, 12], config=SEARCH)
    assert (found.psnr > 30).all(), found.psnr
    assert strangers.max() < 25, "other films are not that close, so closeness means something"
    torch.testing.assert_close(model.film_of(list(found.codes), None), found.films)
    assert found.codes[0].square().mean() < 4, "codes stay typical of normal numbers"


def test_a_search_depends_on_its_film_and_seed_alone() -> None:
    model = cast(Any, generator("gan"))
    films, short = model.sample(None, [1, 2]), CodeSearchConfig(steps=20, candidates=4)
    together = find_codes(model, films, seeds=[10, 11], config=short)
    alone = find_codes(model, films[1:], seeds=[11], config=short)
    torch.testing.assert_close(alone.films[0], together.films[1], atol=1e-3, rtol=0)
    again = find_codes(model, films, seeds=[10, 11], config=short)
    assert torch.equal(again.films, together.films)


def test_a_film_that_the_generator_cannot_make_is_not_pretended_to() -> None:
    model = cast(Any, generator("gan"))
    checkers = torch.ones(1, 1, 16, 16)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1.0
    assert find_codes(model, checkers, seeds=[1], config=CodeSearchConfig(steps=50, candidates=8)).psnr.item() < 15


def test_what_cannot_work_is_refused() -> None:
    model = cast(Any, generator("gan"))
    with pytest.raises(UsageError, match="shape"):
        find_codes(model, torch.zeros(2, 1, 16, 16), seeds=[1])
    with pytest.raises(UsageError, match="training mode"):
        find_codes(model.train(), torch.zeros(1, 1, 16, 16), seeds=[1])
    with pytest.raises(UsageError, match="'diffusion' makes no films of codes"):
        find_codes(cast(Any, as_model(fresh_objective(smallest("diffusion")).model)), torch.zeros(1, 1, 8, 8), seeds=[1])

"""Random numbers: one stream an image, independent of batch and order; seeds for different purposes never meet."""

from __future__ import annotations

import torch

from synthorax.rng import Draws, derive


def test_a_row_depends_on_its_seed_alone() -> None:
    together = Draws([5, 6, 7])
    turned = Draws([7, 5])
    alone = Draws([6])
    a, b, c = together.normal(2, 3), turned.normal(2, 3), alone.normal(2, 3)
    assert torch.equal(a[0], b[1]) and torch.equal(a[2], b[0]) and torch.equal(a[1], c[0])
    assert torch.equal(together.uniform(4)[1], alone.uniform(4)[0]), "the second draw too"


def test_draws_have_the_distribution_that_they_are_called_after() -> None:
    normal = Draws(range(40)).normal(50, 50)
    assert abs(normal.mean().item()) < 0.02 and abs(normal.std().item() - 1) < 0.02
    assert abs(torch.corrcoef(normal.flatten(1)).fill_diagonal_(0).mean().item()) < 0.005, "streams are independent"
    uniform = Draws(range(40)).uniform(2500)
    assert 0 <= uniform.min() < 0.001 and 0.999 < uniform.max() < 1
    assert Draws([1, 2]).normal().shape == (2,)


def test_draws_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    Draws([1]).normal(8)
    assert torch.equal(before, torch.get_rng_state())


def test_derived_seeds_differ_by_every_part_of_the_purpose() -> None:
    purposes = [("noise", 1), ("noise", 2), ("split", 1), ("noise",), ("noise", 1, 1), ("noise", 11)]
    seeds = [derive(0, *purpose) for purpose in purposes] + [derive(1, "noise", 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({derive(0, "image", number) for number in range(50_000)}) == 50_000


def test_derived_seeds_stay_the_same_for_ever() -> None:
    """Plans, runs and published images are named by seeds, so this number may never change."""
    assert derive(0, "image", 0) == 7512138834953151250

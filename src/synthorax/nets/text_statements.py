"""What a text states of each finding, as labels and lesions of a condition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.protocols import LESION_PROPERTIES, UNCERTAIN

MEANINGS = (math.nan, 0.0, UNCERTAIN, 1.0)
"""Statements of a text on a finding, as in `Condition.labels`: nothing, absent, uncertain, present."""
SURE = 0.5
"""Probability from which an answer counts; below it a text is taken to state nothing, as every text is to an untrained parser."""


class TextParser(nn.Module):
    """One learned query for each finding, which attends to the tokens of a text.

    It learns from descriptions whose meaning is known (`TextStatements`) within a few hundred steps; from the denoising error alone, which
    a word hardly changes, it learned no word in 12,000 steps.
    """

    meanings: Tensor

    def __init__(self, num_findings: int, *, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.questions = nn.Parameter(torch.randn(num_findings, width))
        self.norm, self.to_keys_and_values = nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False)
        num_answers = len(MEANINGS) + 2 * len(LESION_PROPERTIES)
        self.answer = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, num_answers))
        self.register_buffer("meanings", torch.tensor(MEANINGS), persistent=False)

    def forward(self, tokens: Tensor, stated: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, T, D], stated [B, T] -> labels [B, K] and lesions [B, K, P] as a `Condition` has them; NaN where not stated."""
        with torch.no_grad():
            kinds, said, values = self._answers(tokens, stated)
            surest = kinds.softmax(2).max(2)
            empty = (stated.sum(1) < 2)[:, None]  # the start token alone: an empty text
            labels = self.meanings[surest.indices].masked_fill(empty | (surest.values < SURE), math.nan)
            values = values.sigmoid()
            values[..., 0] = values[..., 0].round()  # left or right
            lesions = values.masked_fill((said.sigmoid() < SURE) | (labels != 1)[..., None], math.nan)
        return labels, lesions

    def loss(self, tokens: Tensor, stated: Tensor, *, labels: Tensor, lesions: Tensor) -> Tensor:
        """Loss of the answers for each text, [B]: cross-entropies, the mean over findings."""
        kinds, said, values = self._answers(tokens, stated)
        wanted = torch.where(labels.isnan(), 0, (labels == UNCERTAIN) * 2 + (labels == 1) * 3 + (labels == 0))
        of_labels = F.cross_entropy(kinds.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        known = (~lesions.isnan()).to(said)
        of_stating = F.binary_cross_entropy_with_logits(said, known, reduction="none")
        of_values = known * F.binary_cross_entropy_with_logits(values, lesions.nan_to_num(), reduction="none")
        return (of_labels + (labels == 1) * (of_stating + of_values).sum(2)).mean(1)

    def _answers(self, tokens: Tensor, stated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the meanings [B, K, 4], of stating a property, and of its value, each [B, K, P]."""
        questions = self.questions.expand(len(tokens), -1, -1)
        keys, values = self.to_keys_and_values(self.norm(tokens)).chunk(2, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (questions, keys, values))
        attended = F.scaled_dot_product_attention(q.to(k), k, v, attn_mask=stated[:, None, None, :]).transpose(1, 2).flatten(2)
        answers = self.answer(torch.cat([attended, questions.to(attended)], dim=2)).float()
        kinds, said, values = answers.split([len(MEANINGS), len(LESION_PROPERTIES), len(LESION_PROPERTIES)], dim=2)
        return kinds, said, values

"""Text encoders: one that is trained with the model and needs no download, and any of Hugging Face's by its name."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.config import AtLeastOne
from synthorax.errors import UsageError
from synthorax.registry import lookup

TEXT_ENCODERS: Mapping[str, str] = {"words": "synthorax.nets.text:build_word_encoder"}
"""Encoders of our own; any other name is a Hugging Face model, by its name or its folder."""

NEIGHBOURHOOD = 5
"""Kernel, in words, of the convolution in each block of the encoder `words`."""
PAD_TO = 8
"""Token sequences are padded to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The text encoder and its size."""

    encoder: str = "words"
    """words, or the name or folder of a Hugging Face text model"""
    width: AtLeastOne = 128
    """features of a token"""
    depth: AtLeastOne = 2
    """transformer blocks of the encoder words"""
    heads: AtLeastOne = 4
    """attention heads of the encoder words; divides width"""
    max_tokens: AtLeastOne = 64
    """longest text in tokens, with the start token; longer ones are cut off"""


class TextEncoder(Protocol):
    """A module from B texts to tokens [B, T, width] and which of them are stated, [B, T] of bool.

    The first token is a learned start, stated in every row, and the only one of an empty text. Tokens that are not stated are 0.
    """

    width: int

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode; a row does not depend on the others."""


def build_text_encoder(config: TextConfig) -> nn.Module:
    """The encoder that the config names, a `TextEncoder`.

    >>> tokens, stated = build_text_encoder(TextConfig(width=32))(["no effusion", ""])
    >>> tokens.shape, stated.sum(dim=1).tolist()
    (torch.Size([2, 8, 32]), [3, 1])
    """
    if config.encoder in TEXT_ENCODERS:
        build: Callable[[TextConfig], nn.Module] = lookup(TEXT_ENCODERS, config.encoder, kind="text encoder")
        return build(config)
    return HuggingFaceEncoder(config.encoder, width=config.width, max_tokens=config.max_tokens)


def split_words(text: str) -> list[str]:
    """Lower-case words, numbers, and the marks `.` and `,`; hyphens and all else separate.

    >>> split_words("Small left-sided effusion, 2.5 cm.")
    ['small', 'left', 'sided', 'effusion', ',', '2', '.', '5', 'cm', '.']
    """
    return re.findall(r"[^\W\d_]+|\d+|[.,]", text.lower())


class WordEncoder(nn.Module):
    """Words by their hashes, learned places, and a small transformer.

    There is no vocabulary to save: a word is the sum of one row of a table at its hash, which tells words apart, and the mean of the
    rows of its groups of three letters (Sec. 3.2, Bojanowski et al. 2017), which makes `effusions` like `effusion` and gives an unseen
    word a meaning. Words that share a row of the first table still differ in the second.
    """

    def __init__(self, *, width: int = 128, depth: int = 2, heads: int = 4, max_tokens: int = 64,
                 num_word_rows: int = 4096, num_letter_rows: int = 4096) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"a text encoder of width {width} cannot have {heads} heads; choose a divisor of {width}")
        self.width, self.max_tokens = width, max_tokens
        self.words = nn.Embedding(num_word_rows, width)
        self.letters = nn.EmbeddingBag(num_letter_rows, width, mode="mean")
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.places = nn.Parameter(torch.randn(_padded(max_tokens), width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.5)  # a word outweighs its place: what is said matters more than where
        nn.init.normal_(self.letters.weight, std=0.5)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [split_words(text)[:self.max_tokens - 1] for text in texts]
        stated = _stated([1 + len(row) for row in rows], device=self.start.device)
        x = torch.zeros(*stated.shape, self.width, device=self.start.device)  # [B, T, width]
        x[:, 0] = self.start
        if any(rows):
            numbers = {word: number for number, word in enumerate(dict.fromkeys(word for row in rows for word in row))}
            order = torch.tensor([numbers[word] for row in rows for word in row], device=x.device)
            inside = stated.clone()
            inside[:, 0] = False
            x[inside] = self._embed(tuple(numbers))[order].to(x.dtype)
        x = x + self.places[:x.shape[1]]
        for block in self.blocks:
            x = block(x, stated)
        return self.norm(x) * stated[..., None], stated

    def _embed(self, words: Sequence[str]) -> Tensor:
        """Each word by itself, [number of words, width]."""
        device = self.start.device
        whole = [_hash(word) % self.words.num_embeddings for word in words]
        letters = [[_hash(part) % self.letters.num_embeddings for part in _groups_of_three(word)] for word in words]
        starts = torch.tensor([0, *map(len, letters[:-1])]).cumsum(0)
        bags = self.letters(torch.tensor([part for parts in letters for part in parts], device=device), starts.to(device))
        embedded: Tensor = self.words(torch.tensor(whole, device=device)) + bags
        return embedded


def build_word_encoder(config: TextConfig) -> WordEncoder:
    """The encoder `words`."""
    return WordEncoder(width=config.width, depth=config.depth, heads=config.heads, max_tokens=config.max_tokens)


class HuggingFaceEncoder(nn.Module):
    """A text model of Hugging Face, frozen, with a learned projection to `width`.

    Its weights are neither parameters of this module nor in its `state_dict`: a saved model holds the name and the projection. They are
    read from this machine alone, never downloaded. Of two towers (text and image, encoder and decoder) the one that reads text is used.
    """

    def __init__(self, name_or_path: str, *, width: int = 128, max_tokens: int = 64) -> None:
        super().__init__()
        self.name, self.width, self.max_tokens = name_or_path, width, max_tokens
        self._frozen = _load_frozen(name_or_path, max_tokens)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.projection = nn.Linear(self._frozen.width, width)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = self.start.device
        given = torch.tensor([bool(text.strip()) for text in texts], device=device)
        hidden, known = self._frozen.encode([text if text.strip() else "." for text in texts], device=device)  # [B, T - 1, frozen width]
        known = known & given[:, None]  # an empty text stands as a full stop meanwhile: some tokenizers make nothing of nothing
        lengths: list[int] = known.sum(dim=1).tolist()
        stated = _stated([1 + length for length in lengths], device=device)
        projected = self.projection(F.layer_norm(hidden.to(self.projection.weight.dtype), hidden.shape[-1:]))
        x = torch.zeros(*stated.shape, self.width, device=device, dtype=projected.dtype)
        x[:, 0] = self.start
        x[:, 1:1 + max(lengths)] = projected[:, :max(lengths)]
        return x * stated[..., None], stated


class _Frozen:
    """A tokenizer and a network that no module owns; copies of the encoder, such as a moving average, share it."""

    def __init__(self, tokenizer: Any, network: nn.Module, *, width: int, max_tokens: int) -> None:
        self.tokenizer, self.network, self.width, self.max_tokens = tokenizer, network.eval().requires_grad_(False), width, max_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self

    @torch.no_grad()
    def encode(self, texts: list[str], *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Last hidden layer [B, T, width], tokens first and padding behind, and which are tokens [B, T]."""
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(device)
        mask: Tensor = found["attention_mask"]
        hidden: Tensor = self.network(input_ids=found["input_ids"], attention_mask=mask).last_hidden_state
        return hidden, mask.bool()


def _load_frozen(name: str, max_tokens: int) -> _Frozen:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UsageError(f"text encoder '{name}' needs transformers; pip install \"synthorax[text]\"") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        model = AutoModel.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"text encoder '{name}' is not on this machine; fetch it with `hf download {name}`, name the folder that holds "
                         f"it, or choose one of ours: {', '.join(TEXT_ENCODERS)}") from error
    network = getattr(model, "text_model", None) or (model.get_encoder() if model.config.is_encoder_decoder else model)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    longest = min(tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None) or max_tokens)
    return _Frozen(tokenizer, network, width=network.config.hidden_size, max_tokens=min(max_tokens - 1, longest))


class _Block(nn.Module):
    """Neighbouring words, attention and a small network, each behind a norm and added to what was there (pre-norm; Xiong et al. 2020).

    What belongs to a word is next to it ("no", "small left"): attention alone learned that some twenty times as slowly.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_neighbours, self.norm_attention, self.norm_change = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.neighbours = nn.Conv1d(width, width, kernel_size=NEIGHBOURHOOD, padding="same")
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.change = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, stated: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]; no token looks at one that is not stated."""
        words = self.norm_neighbours(x) * stated[..., None]
        x = x + F.gelu(self.neighbours(words.transpose(1, 2)).transpose(1, 2))
        qkv = self.to_qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=stated[:, None, None, :])
        x = x + self.to_out(seen.transpose(1, 2).flatten(2))
        changed: Tensor = x + self.change(self.norm_change(x))
        return changed


def _stated(lengths: Sequence[int], *, device: torch.device) -> Tensor:
    """[B, T] of bool: the first tokens of each row, T the longest length padded to a multiple of `PAD_TO`."""
    places = torch.arange(_padded(max(lengths, default=1)), device=device)
    return places < torch.tensor(lengths, device=device, dtype=torch.long)[:, None]


def _padded(length: int) -> int:
    return -(-length // PAD_TO) * PAD_TO


@functools.lru_cache(maxsize=65536)
def _hash(text: str) -> int:
    """The same number on every machine and in every run, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _groups_of_three(word: str) -> list[str]:
    """`left` -> `<le`, `lef`, `eft`, `ft>`; of long words the first 30 letters."""
    framed = f"<{word[:30]}>"
    return [framed[start:start + 3] for start in range(max(1, len(framed) - 2))]

"""Text encoders: words without a download, rows that do not look at one another, and Hugging Face models by folder."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.text import HuggingFaceEncoder, TextConfig, WordEncoder, _hash, build_text_encoder, split_words

TEXTS = ("small left effusion", "", "no pneumothorax, nodule or mass.", "a nodule in the right upper zone")


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(width=32, depth=2, heads=4, max_tokens=24)


def test_words_are_lower_case_and_keep_sentence_marks() -> None:
    assert split_words("No LEFT-sided Effusion, x-ray T12.") == ["no", "left", "sided", "effusion", ",", "x", "ray", "t", "12", "."]
    assert split_words("œdème \n (2)") == ["œdème", "2"]


def test_first_token_is_stated_and_alone_for_an_empty_text(encoder: WordEncoder) -> None:
    tokens, stated = encoder(TEXTS)
    assert tokens.shape == (4, 8, 32) and stated.shape == (4, 8)  # 8 words and marks at most beside the start, padded to 8
    assert stated.sum(dim=1).tolist() == [4, 1, 8, 8]
    assert stated[:, 0].all() and (tokens[~stated] == 0).all() and tokens.isfinite().all()
    assert encoder(["one two three four five six seven eight"])[0].shape == (1, 16, 32)


def test_a_row_does_not_depend_on_the_others(encoder: WordEncoder) -> None:
    together, stated = encoder([*TEXTS, "word " * 20])
    for row, text in enumerate(TEXTS):
        alone, own = encoder([text])
        torch.testing.assert_close(together[row, stated[row]], alone[0, own[0]], atol=1e-5, rtol=1e-4)


def test_side_order_and_negation_change_the_tokens(encoder: WordEncoder) -> None:
    def mean(text: str) -> Tensor:
        tokens, stated = encoder([text])
        return tokens[0, stated[0]].mean(0)

    for one, other in (("left effusion", "right effusion"), ("no effusion, nodule", "effusion, no nodule"), ("effusion", "effusion.")):
        assert (mean(one) - mean(other)).abs().max() > 1e-2
    assert torch.equal(mean("Left  Effusion"), mean("left effusion"))


def test_a_plural_lies_nearer_than_another_word() -> None:
    torch.manual_seed(0)
    wide = WordEncoder(width=4096, depth=0)  # so wide that unlike vectors are nearly at right angles, whatever the draw
    effusion, effusions, nodule, unseen = wide._embed(["effusion", "effusions", "nodule", "zyxomorphic"])
    cosine = torch.nn.functional.cosine_similarity
    assert (effusion - effusions).norm() > 1e-3 and unseen.norm() > 0
    assert cosine(effusion, effusions, dim=0) > 0.05 > cosine(effusion, nodule, dim=0)


def test_words_that_share_a_row_of_the_table_stay_apart() -> None:
    crowded = WordEncoder(width=16, heads=2, num_word_rows=1)
    left, right = crowded._embed(["left", "right"])
    assert (left - right).abs().max() > 1e-2


def test_long_text_is_cut_at_max_tokens(encoder: WordEncoder) -> None:
    long = "effusion " * 10_000
    tokens, stated = encoder([long])
    assert stated.sum() == 24
    torch.testing.assert_close(tokens, encoder(["effusion " * 23])[0])


def test_words_keep_their_rows_for_ever() -> None:
    """A saved model has no vocabulary: if a word moved to another row, the model would forget what it means."""
    assert [_hash(word) % 4096 for word in ("left", "right", "effusion")] == [387, 2229, 322]


def test_a_state_dict_alone_restores_it(encoder: WordEncoder) -> None:
    torch.manual_seed(1)
    other = WordEncoder(width=32, depth=2, heads=4, max_tokens=24)
    assert not torch.allclose(other(TEXTS)[0], encoder(TEXTS)[0])
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(TEXTS)[0], encoder(TEXTS)[0])


def test_it_learns_side_and_negation() -> None:
    """A linear readout and the encoder, trained on a few prompts, answer for wordings that they have not seen."""
    torch.manual_seed(0)
    encoder = WordEncoder(width=32, depth=1, heads=4, max_tokens=16)
    readout = nn.Linear(32, 2)
    frames = ("{}", "there is {}", "{} is seen", "film shows {}", "{} can be seen")
    prompts = [(frame.format(f"{denial}{side} {size} effusion"), float(side == "left"), float(denial == ""))
               for frame in frames for denial in ("", "no ") for side in ("left", "right") for size in ("", "small", "large", "tiny")]
    held_out = [row for row in prompts if "film shows" in row[0]]
    train = [row for row in prompts if row not in held_out]
    optimizer = torch.optim.Adam([*encoder.parameters(), *readout.parameters()], lr=3e-3)

    def answers(rows: list[tuple[str, float, float]]) -> Tensor:
        result: Tensor = readout(encoder([row[0] for row in rows])[0][:, 0])
        return result

    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(answers(train), torch.tensor([row[1:] for row in train]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (answers(held_out) > 0) == torch.tensor([row[1:] for row in held_out]).bool()
    assert right.float().mean() > 0.9


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(UsageError, match="width 30 cannot have 4 heads"):
        build_text_encoder(TextConfig(width=30, heads=4))


# Hugging Face models, made here at random.

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "left", "right", "small", "effusion", "nodule", ".", ",")


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def bert(transformers: ModuleType, tmp_path: Path) -> Path:
    """A folder with a tiny random BERT and its WordPiece vocabulary."""
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(VOCABULARY), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=32)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(transformers: ModuleType, tmp_path: Path) -> Path:
    """A folder with a tiny random CLIP and its byte-pair vocabulary."""
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters), "le", "ft</w>", "left</w>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\nl e\nf t</w>\nle ft</w>\n")
    torch.manual_seed(0)
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    text = {"vocab_size": len(names), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
              "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_hugging_face_model_reads_text(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = build_text_encoder(TextConfig(encoder=str(request.getfixturevalue(kind)), width=12, max_tokens=16))
    tokens, stated = encoder(["no left effusion", "", "right nodule"])
    assert tokens.shape[0] == 3 and tokens.shape[1] % 8 == 0 and tokens.shape[2] == 12
    assert stated[1].sum() == 1 and stated[:, 0].all() and (tokens[~stated] == 0).all()
    alone, own = encoder(["right nodule"])
    torch.testing.assert_close(tokens[2, stated[2]], alone[0, own[0]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoder(["left"])[0], encoder(["right"])[0], atol=1e-3)
    assert encoder(["left " * 500])[1].sum() <= 16


def test_frozen_weights_are_neither_saved_nor_trained_nor_copied(bert: Path) -> None:
    encoder = build_text_encoder(TextConfig(encoder=str(bert), width=12))
    assert isinstance(encoder, HuggingFaceEncoder)
    own = {"start", "projection.weight", "projection.bias"}
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()} == own
    before = [weight.clone() for weight in encoder._frozen.network.parameters()]
    encoder.train()
    tokens, _ = encoder(["left effusion"])
    tokens.square().sum().backward()
    torch.optim.SGD(encoder.parameters(), lr=1.0).step()
    assert all(torch.equal(old, new) and new.grad is None for old, new in zip(before, encoder._frozen.network.parameters(), strict=True))
    assert not encoder._frozen.network.training
    average = copy.deepcopy(encoder)
    assert average._frozen is encoder._frozen and average.projection.weight is not encoder.projection.weight
    restored = build_text_encoder(TextConfig(encoder=str(bert), width=12))
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored(["left effusion"])[0], encoder(["left effusion"])[0])


def test_absent_weights_are_named_with_the_remedy(transformers: ModuleType, tmp_path: Path) -> None:
    remedy = r"'nobody/no-such-model' is not on this machine; fetch it with `hf download nobody/no-such-model`.*words"
    with pytest.raises(UsageError, match=remedy):
        build_text_encoder(TextConfig(encoder="nobody/no-such-model"))
    with pytest.raises(UsageError, match="is not on this machine"):
        build_text_encoder(TextConfig(encoder=str(tmp_path)))


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r'pip install "synthorax\[text\]"'):
        build_text_encoder(TextConfig(encoder="some/model"))

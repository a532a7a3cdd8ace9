"""Text as a condition: words, their encoder, and what it can be taught."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from ebbtide.domains.images.captions import Vocabulary
from ebbtide.shared.data import Condition
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.embeddings import drop_randomly
from ebbtide.shared.schedules import Cosine
from ebbtide.shared.unet import UNet
from ebbtide.shared.words import WordEncoder, WordNetwork

CAPTIONS = ["a red dress", "a blue dress", "a red shirt, worn", None, "a blue shirt of Ada"]


@pytest.fixture
def words() -> Vocabulary:
    return Vocabulary.fit(CAPTIONS, buckets=8)


def test_words_are_numbered_by_frequency_and_rare_ones_are_not_kept(words: Vocabulary) -> None:
    assert words.words == ("a", "blue", "dress", "red", "shirt") and words.length == 5
    ids = words.encode(["a red DRESS", None, "Ada", "a b c d e f g"])[..., 0]
    assert ids[0, :3].tolist() == [0, 3, 2] and ids[0, 3:].isnan().all() and ids[1].isnan().all()
    assert 5 <= ids[2, 0] < 13 and ids[2, 0] == words.encode(["ADA"])[0, 0, 0]
    assert not ids[3].isnan().any()  # cut to the length
    assert words.unknown("a green dress") == ["green"]
    assert Vocabulary.from_state(json.loads(json.dumps(words.state()))) == words


def test_a_token_knows_of_the_others_and_not_of_what_is_missing(words: Vocabulary) -> None:
    torch.manual_seed(0)
    encoder = WordEncoder(len(words), words.length, width=16, heads=2).eval()
    tokens = encoder(words.encode(["a red dress", "a blue dress", None]))
    assert tokens.shape == (3, 5, 16) and tokens[2].isnan().all() and tokens[:2, 3:].isnan().all()
    assert not torch.allclose(tokens[0, 2], tokens[1, 2])  # "dress" after another colour
    longer = torch.cat([words.encode(["a red dress"])[:, :3], torch.full((1, 2, 1), torch.nan)], 1)
    torch.testing.assert_close(encoder(longer)[0, :3], tokens[0, :3])
    assert not torch.allclose(encoder(words.encode(["red a dress"]))[0, 2], tokens[0, 2])  # order matters


def captioned(words: Vocabulary) -> NetworkDenoiser:
    torch.manual_seed(1)
    encoder = WordEncoder(len(words), words.length, width=16, layers=1, heads=2)
    network = UNet(2, 1, (16, 24), blocks=1, attention=(1,), token_width=16)
    return NetworkDenoiser(WordNetwork(network, encoder), Cosine())


def test_dropping_a_caption_is_the_same_as_having_none(words: Vocabulary) -> None:
    denoiser = captioned(words).eval()
    for parameter in denoiser.parameters():  # the last layer starts at 0, and would hide all differences
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    told = Condition(tokens=words.encode(["a red dress", "a blue shirt"]))
    dropped = drop_randomly(told, 1.0, torch.rand(2))
    without = denoiser(x, t, Condition(tokens=words.encode([None, None])))
    assert torch.equal(denoiser(x, t, told.drop()), without) and torch.equal(denoiser(x, t, dropped), without)
    assert not torch.allclose(denoiser(x, t, told), without) and torch.isfinite(without).all()
    assert torch.isfinite(denoiser(x, t, Condition())).all()


def test_encoder_and_network_learn_together_what_a_caption_means(words: Vocabulary) -> None:
    """Red pictures are 1 and blue ones are -1, throughout: from pure noise only the caption tells."""
    denoiser = captioned(words)
    told = Condition(tokens=words.encode([c for c in CAPTIONS if c]))
    clean = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
    optimiser = torch.optim.Adam(denoiser.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    embedding = next(m for m in denoiser.modules() if isinstance(m, WordEncoder)).words.weight
    before = embedding.detach().clone()
    for _ in range(60):
        noise = torch.randn(clean.shape, generator=generator)
        t = 0.5 + 0.5 * torch.rand(4, generator=generator)
        loss = denoiser.loss(clean, noise, t, told, torch.ones_like(clean, dtype=torch.bool)).mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in denoiser.parameters())
        optimiser.step()
    assert not torch.equal(embedding, before)
    x = torch.randn(2, 1, 4, 4, generator=generator).expand(2, -1, -1, -1)
    asked = Condition(tokens=words.encode(["a red shirt", "a blue dress"]))
    with torch.no_grad():
        made: Tensor = denoiser.eval()(x, torch.tensor(1.0), asked)
    assert made[0].mean() > 0.5 and made[1].mean() < -0.5

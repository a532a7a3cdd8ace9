"""Text by a frozen encoder: tiny random CLIP and T5 folders, what is read of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="the extra ebbtide[text]")

from safetensors.torch import load_file, save_file

from ebbtide.domains.images import text_encoder as module
from ebbtide.domains.images.collection import Collection, collect
from ebbtide.domains.images.frozen import FrozenCaptions
from ebbtide.domains.images.model import FittedImages
from ebbtide.domains.images.text_encoder import TextEncoder, open_text_encoder
from ebbtide.shared.data import Condition
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import GridSettings
from ebbtide.shared.noise import Keys
from ebbtide.shared.words import TokenTable

CAPTIONS = ["a red square", None, "a blue square on the left", "a red square", "  "]


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["CLIP", "T5"])
def folder(request: pytest.FixtureRequest, tiny_encoder: Callable[..., Path]) -> Path:
    return tiny_encoder(request.param)


def test_the_vectors_are_those_of_transformers(folder: Path) -> None:
    """One text at a time through the library, from the folder, is the truth."""
    import transformers

    found = open_text_encoder(folder)
    cls: Any = {"CLIP": transformers.CLIPTextModel, "T5": transformers.T5EncoderModel}[found.identity.kind]
    truth, tokenizer = cls.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a red square", "a blue square on the left", "zebra", "a red square on the right"]
    made = found.encode(texts, 12)
    for text, vectors in zip(texts, made, strict=True):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            expected = truth(input_ids=ids).last_hidden_state[0]
        assert vectors.dtype == torch.float16 and vectors.shape == expected.shape
        torch.testing.assert_close(vectors.float(), expected, atol=2e-3, rtol=2e-3)
    assert found.identity.width == 16 and found.longest == (12 if found.identity.kind == "CLIP" else 77)


def test_a_text_does_not_depend_on_its_company(folder: Path) -> None:
    found = open_text_encoder(folder)
    texts = [f"a {colour} square{tail}" for colour in ("red", "blue") for tail in ("", " on the left")] * 11
    for text, vectors in zip(texts, found.encode(texts, 12), strict=True):
        assert torch.equal(vectors, found.encode([text], 12)[0])
    found.release()
    assert torch.equal(found.encode(texts[:1], 12)[0], found.encode(texts, 12)[0])
    cut = found.tokens(["a red square on the left"], 4)[0]
    whole = found.tokens(["a red square on the left"])[0]
    assert len(cut) == 4 and cut[:3] == whole[:3] and cut[-1] == whole[-1]  # the last mark stays


def test_captions_are_encoded_once_standardised_and_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = open_text_encoder(folder), list[str]()
    own = TextEncoder.encode

    def counted(self: TextEncoder, texts: list[str], *given: Any, **named: Any) -> Any:
        seen.extend(texts)
        return own(self, texts, *given, **named)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    read, rows, table = FrozenCaptions.fit(CAPTIONS * 5, found)
    assert seen == ["a red square", "a blue square on the left"]
    vectors = table.vectors.float()
    count = vectors.std(0, unbiased=False)
    assert vectors.mean(0).abs().max() < 2e-3 and count.max() < 1.01 and count.median() > 0.9
    told = table.looked_up(Condition(tokens=rows)).tokens
    assert told is not None and told.shape == (25, read.length, 16) and told.dtype == torch.float32
    same = read.encode(CAPTIONS)
    torch.testing.assert_close(told[:5], same, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(told[0, :3], told[3, :3]) and not torch.equal(told[0, :3], told[2, :3])
    assert same[1].isnan().all() and same[4].isnan().all()  # no caption: the learned null
    lengths = (~same.isnan().any(-1)).sum(1)
    assert lengths[0] < lengths[2] == read.length and lengths[0] == len(found.tokens(["a red square"])[0])
    assert FrozenCaptions.from_state(json.loads(json.dumps(read.state()[0])), read.state()[1]).identity == (
        found.identity
    )


def test_without_a_caption_no_encoder_is_asked(folder: Path, tmp_path: Path) -> None:
    read, _, _ = FrozenCaptions.fit(CAPTIONS, open_text_encoder(folder))
    gone = FrozenCaptions.from_state(*read.state())
    shutil.rmtree(folder)
    assert gone.encode([None, ""]).isnan().all()
    with pytest.raises(InputError, match=r"text-encoder-missing: .*--text-encoder FOLDER"):
        gone.encode(["a red square"])


def test_a_moved_encoder_is_known_by_its_weights_and_another_is_refused(
    folder: Path, tiny_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    read, _, _ = FrozenCaptions.fit(CAPTIONS, open_text_encoder(folder))
    before = read.encode(["a red square"])
    moved = shutil.move(folder, tmp_path / "moved")
    held = FrozenCaptions.from_state(*read.state()).at(Path(moved))
    assert torch.equal(held.encode(["a red square"]).nan_to_num(), before.nan_to_num())
    other = tiny_encoder(read.identity.kind, seed=1)
    with pytest.raises(InputError, match=r"text-encoder-differs: .*another text encoder"):
        read.at(other).encode(["a red square"])
    tokenizer = json.loads((Path(moved) / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["red"] = vocab["red"], vocab["a"]
    (Path(moved) / "tokenizer.json").write_text(json.dumps(tokenizer))
    (Path(moved) / "model.safetensors").touch()  # what was verified is looked at again when weights change
    with pytest.raises(InputError, match="text-encoder-differs"):
        FrozenCaptions.from_state(*read.state()).at(Path(moved)).encode(["a red square"])


def test_the_other_half_of_a_whole_model_is_left_alone(tiny_encoder: Callable[..., Path]) -> None:
    """A whole CLIP or T5 holds the same text encoder as its text part alone."""
    for kind in ("CLIP", "T5"):
        found, whole = (
            open_text_encoder(tiny_encoder(kind)),
            open_text_encoder(tiny_encoder(kind, whole=True)),
        )
        assert found.identity.sha256 != whole.identity.sha256 and found.identity.width == whole.identity.width
        names = set(module._weights(whole.folder, kind))
        assert not any(name.startswith(("vision", "decoder", "logit")) for name in names)
        assert torch.isfinite(whole.encode(["a red square"], 12)[0]).all()


def test_weights_may_lie_in_shards(folder: Path) -> None:
    found = open_text_encoder(folder)
    truth, tensors = found.encode(["a red square"], 12)[0], load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    sharded = open_text_encoder(folder)
    assert torch.equal(sharded.encode(["a red square"], 12)[0], truth)
    assert sharded.identity.sha256 != found.identity.sha256
    index["weight_map"][names[0]] = "../model-1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="names a file that is not here"):
        open_text_encoder(folder)


def change(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | facts))


def retensor(folder: Path, work: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    work(tensors)
    save_file(tensors, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def poison(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "norm" in name and name.endswith("weight"))
    tensors[name][0] = torch.nan


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "another model": (lambda f: change(f, model_type="bert"), "but 'bert'"),
    "quantised": (lambda f: change(f, quantization_config={"bits": 4}), "quantised"),
    "wrong sizes": (lambda f: change(f, hidden_size=24, d_model=24), "do not fit config.json"),
    "words for numbers": (lambda f: change(f, hidden_size="x", d_model="x"), "describes no"),
    "pickle": (pickled, "a pickle, which may run code and is never read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors"),
    "a pointer": (lambda f: (f / "model.safetensors").write_text("version x"), "not a whole safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "there is no tokenizer.json"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be read"),
    "a tensor lacks": (
        lambda f: retensor(f, lambda t: t.pop(next(n for n in t if "final_layer_norm" in n))),
        "of its tensors lack",
    ),
    "not finite": (lambda f: retensor(f, poison), "not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_read_gets_one_line(folder: Path, fault: str) -> None:
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(InputError, match="text-encoder") as caught:
        open_text_encoder(folder).encode(["a red square"], 12)
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_tokenizer_of_another_model_is_noticed(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="do not belong together"):
        open_text_encoder(folder).encode(["a zebra"], 12)


def test_nothing_of_the_folder_is_run(folder: Path, tmp_path: Path) -> None:
    """Settings that make transformers import or fetch code are not followed."""
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    change(folder, auto_map={"AutoModel": "evil.Evil"}, _attn_implementation="kernels-community/evil")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil"]}}))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert open_text_encoder(folder).encode(["a red square"], 12)[0].shape == (5, 16)
    assert not (tmp_path / "ran").exists()


def test_more_captions_than_memory_are_refused_before_they_are_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebbtide.domains.images.frozen.MOST", 400)
    with pytest.raises(InputError, match=r"text-memory: photos: 2 different captions"):
        FrozenCaptions.fit(CAPTIONS, open_text_encoder(folder), where="photos")


def test_the_end_of_a_long_prompt_is_warned_of(folder: Path) -> None:
    read, _, _ = FrozenCaptions.fit(["a red square"], open_text_encoder(folder))
    assert read.doubts("a zebra") == []  # every word can be said
    (fault,) = read.doubts("a red square on the left")
    assert fault.code == "prompt-long" and fault.severity == "warning"
    assert torch.isfinite(read.encode(["a red square on the left"])).all()


def test_a_table_without_rows_gives_nothing_known() -> None:
    table = TokenTable(torch.empty(0, 3, dtype=torch.float16))
    told = table.looked_up(Condition(tokens=torch.full((2, 4, 1), torch.nan)))
    assert told.tokens is not None and told.tokens.shape == (2, 4, 3) and told.tokens.isnan().all()
    assert table.looked_up(Condition()).tokens is None


COLOURS = {"red": (220, 40, 40), "blue": (50, 70, 220)}


@pytest.fixture
def captioned(tmp_path: Path) -> Collection:
    """160 pictures of 8 x 8 pixels, of two colours, captioned in two ways."""
    rng, rows = np.random.default_rng(0), ["file_name,caption"]
    (tmp_path / "captioned").mkdir()
    for k in range(160):
        colour = list(COLOURS)[k % 2]
        pixels = np.full((8, 8, 3), COLOURS[colour]) + rng.normal(0, 12, (8, 8, 3)) + rng.normal(0, 20)
        name = f"{k:03d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "captioned" / name)
        rows.append(f"{name},{'a ' if k // 2 % 2 else ''}{colour} square")
    (tmp_path / "captioned" / "metadata.csv").write_text("\n".join(rows))
    return collect(tmp_path / "captioned")


def test_what_a_prompt_says_appears(
    tiny_encoder: Callable[..., Path], captioned: Collection, tmp_path: Path
) -> None:
    """A random encoder tells words apart, which is enough."""
    folder = tiny_encoder("CLIP")
    settings = GridSettings(
        widths=(16, 24), attention=(1,), levels=1, components=4, folds=2, blank=0.9, steps=70, batch_size=24,
        learning_rate=4e-3, sampler_steps=6, patience=None, held_out=0.05, density_mean=1.0, density_std=1.6,
    )  # fmt: skip
    fitted = FittedImages.fit(captioned, text_encoder=folder, settings=settings, device="cpu")
    assert "prompt" in fitted.can and fitted.about["text_encoder"]["width"] == 16
    fitted.save(tmp_path / "model")
    held = sorted(file.name for file in (tmp_path / "model").iterdir())
    assert held == ["config.json", "manifest.json", "weights.safetensors"]
    again = FittedImages.load(tmp_path / "model")
    keys = Keys.range(1, 16)
    for colour in COLOURS:
        wish = fitted.condition(keys, {}, f"a {colour} square")
        made = fitted.generate(keys, wish, guidance=3.0)
        reddest = (made[..., 0].mean((1, 2)) > made[..., 2].mean((1, 2))) == (colour == "red")
        assert reddest.mean() >= 0.9
    loaded = again.generate(keys, again.condition(keys, {}, "a blue square"), guidance=3.0)
    assert np.abs(loaded.astype(float) - made).mean() < 2  # weights are kept in half precision
    without = fitted.condition(keys, {})
    assert without.tokens is not None and without.tokens.isnan().all()
    away = fitted.generate(keys, without, guidance=3.0, negative="red square")
    assert (away[..., 2].mean((1, 2)) > away[..., 0].mean((1, 2))).mean() >= 0.9

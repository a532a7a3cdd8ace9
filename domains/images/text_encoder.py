"""A frozen text encoder, CLIP's or T5's, read from a local folder as `save_pretrained` writes it.

Nothing is downloaded and nothing of the folder is run: weights are read from safetensors alone and put into a
class of `transformers` that is named here, the tokenizer is `tokenizer.json` (or, of CLIP, `vocab.json` and
`merges.txt`), and settings that ask for other code, quantisation or adapters are not looked at.

CLIP: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; its last
hidden states are what Stable Diffusion attends to. T5: Raffel et al. 2020; the encoder of Imagen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.errors import InputError

Progress = Callable[[str, float], None]
OPTION = "--text-encoder"
LONGEST = 77
"""Tokens of a text that are read at most: what CLIP was made for."""
CONFIG, WEIGHTS, INDEX, TOKENIZER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
_KINDS = {"clip": "CLIP", "clip_text_model": "CLIP", "t5": "T5"}
_ASKING = frozenset(["auto_map", "dtype", "torch_dtype", "attn_implementation", "architectures"])
_OTHERS = {
    "CLIP": ("vision_model.", "visual_projection", "text_projection", "logit_scale"),
    "T5": ("decoder.", "lm_head"),
}
"""Weights of the models' other parts."""
_PLEASE = "give a folder of a CLIP text model or a T5 encoder, as save_pretrained writes it"
_TOGETHER = 16  # texts of one length, encoded at once: a fixed number, so that company changes nothing
_PROBED = "A photo of 3 red squares, seen from above; it's naïve."
"""A sentence whose tokens tell whether two folders have the same tokenizer."""


def require_transformers() -> None:
    """Raise InputError where transformers is not installed."""
    try:
        import tokenizers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        what = "a text encoder is read through transformers, which is not installed"
        raise InputError("no-transformers", what, OPTION, 'pip install "ebbtide[text]"') from error


@dataclass(frozen=True)
class Identity:
    """What names a text encoder.

    Args:
        kind: "CLIP" or "T5".
        width: numbers of a token's vector.
        sha256: of the weights: of `model.safetensors`, or of the list of shards with the sha256 of each.
        tokens: sha256 of how a certain sentence is cut into tokens.
        named: the folder, as the user gave it.
    """

    kind: str
    width: int
    sha256: str
    tokens: str
    named: str

    def same(self, other: Identity) -> bool:
        """Whether both give the same vectors, wherever they lie."""
        return (self.sha256, self.tokens) == (other.sha256, other.tokens)

    def __str__(self) -> str:
        return f"{self.kind} of {self.width} numbers a token, sha256 {self.sha256[:16]}"


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """An encoder that was found whole; its weights are loaded when a text is encoded. Made by
    `open_text_encoder`.

    Args:
        folder: where it lies.
        identity: what names it.
        settings: a configuration of `transformers`, of the text's part alone.
        tokenizer: of the library `tokenizers`.
        longest: tokens of a text at most.
    """

    folder: Path
    identity: Identity
    settings: Any
    tokenizer: Any
    longest: int
    _held: dict[str, nn.Module] = field(default_factory=dict)

    def tokens(self, texts: Sequence[str], longest: int | None = None) -> list[list[int]]:
        """Numbers of the tokens of each text, first and last marks among them; what is beyond `longest` is
        left out, and the last mark is kept.

        Raises:
            InputError: `text-encoder`: the tokenizer knows tokens that the weights do not.
        """
        if longest is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(longest)
        self.tokenizer.no_padding()
        found = [list(one.ids) for one in self.tokenizer.encode_batch(list(texts))]
        if max((max(ids, default=0) for ids in found), default=0) >= self.settings.vocab_size:
            what = "tokenizer and weights do not belong together"
            raise InputError("text-encoder", what, str(self.folder), _PLEASE)
        return found

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        longest: int,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """The last hidden states of each text: (t, D) float16 on the CPU, t its number of tokens.

        Texts of one length are encoded together, so that none is padded.

        Raises:
            InputError: `text-encoder`: weights that lack, do not fit `config.json`, or are not finite.
        """
        ids, made = self.tokens(texts, longest), dict[int, Tensor]()
        order = sorted((row for row, one in enumerate(ids) if one), key=lambda row: len(ids[row]))
        model = self._model(torch.device(device)) if order else None
        for _, alike in groupby(order, key=lambda row: len(ids[row])):
            rows = list(alike)
            for first in range(0, len(rows), _TOGETHER):
                some = rows[first : first + _TOGETHER]
                padded = some + [some[-1]] * (_TOGETHER - len(some))
                given = torch.tensor([ids[row] for row in padded], device=device)
                assert model is not None
                states = model(input_ids=given).last_hidden_state[: len(some)].half().cpu()
                if not torch.isfinite(states).all():
                    raise self._refused("what it makes of a text is not finite")
                made |= zip(some, states, strict=True)
                if progress is not None:
                    progress("encoding the captions", len(made) / len(order))
        empty = torch.empty(0, self.identity.width, dtype=torch.float16)
        return [made.get(row, empty) for row in range(len(ids))]

    def release(self) -> None:
        """Let the weights go; they are read again when they are needed."""
        self._held.clear()

    def _model(self, device: torch.device) -> nn.Module:
        if "model" not in self._held:
            self._held["model"] = self._loaded()
        return self._held["model"].to(device)

    def _loaded(self) -> nn.Module:
        import transformers

        kind = self.identity.kind
        cls: Any = transformers.CLIPTextModel if kind == "CLIP" else transformers.T5EncoderModel
        weights = _weights(self.folder, kind)
        with _quiet():
            try:
                model, told = cls.from_pretrained(
                    None,  # nothing is looked for: configuration and weights are handed over
                    config=self.settings,
                    state_dict=weights,
                    output_loading_info=True,
                    attn_implementation="sdpa" if kind == "CLIP" else "eager",
                )
            except Exception as error:  # the library's errors have no base of their own
                raise self._refused(f"the weights do not fit {CONFIG}") from error
        # transformers draws what lacks at random and goes on.
        if lacking := len(told["missing_keys"]) + len(told["mismatched_keys"]):
            raise self._refused(f"{lacking} of its tensors lack, or are of another shape")
        encoder: nn.Module = model.float().eval().requires_grad_(False)
        return encoder

    def _refused(self, what: str) -> InputError:
        return InputError("text-encoder", what, str(self.folder), _PLEASE)


def open_text_encoder(folder: Path | str) -> TextEncoder:
    """Look whether a folder holds a text encoder that can be read.

    Raises:
        InputError: `no-transformers`; `text-encoder`: no folder, no CLIP or T5 in it, weights that are no
            safetensors, or no tokenizer.
    """
    require_transformers()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("text-encoder", "there is no such folder", str(folder), _PLEASE)
    files = _files(folder)
    # A changed file is another one; else what was verified once in this process is not read again.
    seen = tuple((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _opened(folder, seen)


@lru_cache(maxsize=4)
def _opened(folder: Path, seen: tuple[tuple[str, int, int], ...]) -> TextEncoder:
    kind, settings = _configuration(folder)
    tokenizer = _tokenizer(folder, kind)
    width = int(settings.hidden_size if kind == "CLIP" else settings.d_model)
    _require_embedding(folder, (settings.vocab_size, width))
    longest = settings.max_position_embeddings if kind == "CLIP" else LONGEST
    probed = json.dumps(list(tokenizer.encode(_PROBED).ids)).encode()
    identity = Identity(kind, width, _digest(folder), hashlib.sha256(probed).hexdigest(), str(folder))
    return TextEncoder(folder, identity, settings, tokenizer, min(LONGEST, longest))


def _configuration(folder: Path) -> tuple[str, Any]:
    """The kind of an encoder, and the configuration of the text's part, without what could ask for other
    code."""
    import transformers

    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("text-encoder", f"there is no {CONFIG}", str(folder), _PLEASE) from None
    except (OSError, ValueError, RecursionError) as error:
        what = f"{CONFIG} is not JSON that can be read"
        raise InputError("text-encoder", what, str(folder), "copy it again") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind not in _KINDS:
        what = f"this is no text encoder that can be read, but {str(kind)[:40]!r}"
        raise InputError("text-encoder", what, str(folder), _PLEASE)
    if "quantization_config" in found:
        what, remedy = "its weights are quantised", "give those in float32, float16 or bfloat16"
        raise InputError("text-encoder", what, str(folder), remedy)
    own = found.get("text_config") or found
    cls: Any = transformers.T5Config if kind == "t5" else transformers.CLIPTextConfig
    try:
        with _quiet():
            plain = {name: value for name, value in own.items() if name not in _ASKING and name[:1] != "_"}
            made = cls.from_dict(plain)
        sizes = (made.vocab_size, made.d_model if kind == "t5" else made.hidden_size)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError("a size that is none")
        return _KINDS[kind], made
    except Exception as error:  # the library's errors have no base of their own
        what = f"{CONFIG} describes no {_KINDS[kind]} that can be made"
        raise InputError("text-encoder", what, str(folder), _PLEASE) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No word from transformers: what goes wrong is told as everything else is."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _files(folder: Path) -> list[Path]:
    """The weights, one file or shards."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt")):
        what, remedy = "its weights are a pickle, which may run code and is never read", "save it anew as"
        raise InputError("text-encoder", what, str(folder), f"{remedy} safetensors (save_pretrained does so)")
    raise InputError("text-encoder", f"there is no {WEIGHTS}", str(folder), _PLEASE)


def _shards(folder: Path) -> list[Path]:
    try:
        held = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted({str(name) for name in held["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("text-encoder", f"{INDEX} cannot be read", str(folder), _PLEASE) from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            what = f"{INDEX} names a file that is not here, or is no safetensors"
            raise InputError("text-encoder", what, str(folder), "copy the folder again")
    return [folder / name for name in names]


def _digest(folder: Path) -> str:
    """sha256 of the weights."""
    found = []
    for path in _files(folder):
        with path.open("rb") as file:
            found.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    if len(found) == 1:
        return found[0][1]
    return hashlib.sha256("\n".join(" ".join(one) for one in found).encode()).hexdigest()


def _parts(folder: Path) -> Iterable[tuple[str, Any]]:
    """(name, the open safetensors file) of every tensor."""
    from safetensors import SafetensorError, safe_open

    for path in _files(folder):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it has no other way)
                    yield name, file
        except (SafetensorError, OSError) as error:
            what, remedy = f"{path.name} is not a whole safetensors file", "copy it again"
            raise InputError("text-encoder", what, str(folder), remedy) from error


def _weights(folder: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of the text's part, in float32."""
    found = {}
    for name, file in _parts(folder):
        if not name.startswith(_OTHERS[kind]):
            tensor = file.get_tensor(name)
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def _require_embedding(folder: Path, shape: tuple[int, int]) -> None:
    """Raise InputError where the weights hold no embedding of tokens of the size that is told, before
    anything of that size is made."""
    ends = ("token_embedding.weight", "shared.weight", "embed_tokens.weight")
    shapes = [tuple(file.get_slice(name).get_shape()) for name, file in _parts(folder) if name.endswith(ends)]
    if shape not in shapes:
        raise InputError("text-encoder", f"the weights do not fit {CONFIG}", str(folder), _PLEASE)


def _tokenizer(folder: Path, kind: str) -> Any:
    import tokenizers
    import transformers

    try:
        if (folder / TOKENIZER).is_file():
            return tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        if kind == "CLIP" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            known = transformers.CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            return known.backend_tokenizer
    except Exception as error:  # the library raises bare Exceptions
        what = "its tokenizer cannot be read"
        raise InputError("text-encoder", what, str(folder), "save the tokenizer anew") from error
    remedy = "put the tokenizer's files beside the weights (tokenizer.save_pretrained does so)"
    raise InputError("text-encoder", f"there is no {TOKENIZER}", str(folder), remedy)

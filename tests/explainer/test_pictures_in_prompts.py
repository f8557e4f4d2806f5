"""Answers about pictures: placeholders are one thumbnail, every word says how much rests on which part."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from render.test_pages import Page

import fxplain
from fxplain.render.answer_page import answer_page


def photograph(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)


@cache
def answer() -> Any:
    folder = Path(mkdtemp())
    explainer = fxplain.Explainer.from_pretrained(toys.llava(folder / "llava"))
    pictures = [photograph(0), photograph(1)]
    return explainer.generate(
        "a <image> photo <image> of the", images=pictures, max_new_tokens=3, method="relevancy"
    )


def test_each_word_has_its_share_of_text_pictures_and_answer(tmp_path: Path) -> None:
    found = answer()
    names = {"input_ids", "pixel_values, picture 1", "pixel_values, picture 2", "answer so far"}
    for shares in found.evidence:
        assert set(shares) == names
        assert sum(shares.values()) == pytest.approx(1)
    row = found.matrix[0].double()
    second = [i for i, part in enumerate(found.parts) if part == "pixel_values, picture 2"]
    assert len(second) == 16
    share = float(row[second].abs().sum() / row.abs().sum())
    assert found.evidence[0]["pixel_values, picture 2"] == pytest.approx(share, rel=1e-5)
    assert found.evidence[0]["answer so far"] == 0 < found.evidence[2]["answer so far"]
    found.save(tmp_path / "answer.json")
    assert fxplain.load(tmp_path / "answer.json").evidence == found.evidence
    assert found.top(2)[0].share >= found.top(2)[1].share > 0


def test_several_pictures_are_drawn_each_with_its_own_map() -> None:
    one = answer()[0]
    assert one.display.frames == {"pixel_values": ["picture 1", "picture 2"]}
    axes = one.plot().axes
    drawn = [a for a in axes if a.get_title(loc="left")]
    assert [a.get_title(loc="left").splitlines()[-1] for a in drawn] == ["picture 1", "picture 2"]
    first, second = (np.asarray(a.get_images()[0].get_array()) for a in drawn)
    assert np.abs(first.astype(int) - second).mean() > 5
    assert one.heat_map().shape == (2, 4, 4)


def test_placeholders_are_one_thumbnail_where_the_picture_stands() -> None:
    text = answer_page(answer())
    page = Page(text)
    assert page.text.count("<image> \u00d7 16") == 2
    classes = [facts.get("class") for tag, facts in page.tags if tag == "span"]
    assert classes.count("picture thumb") == 2
    assert classes.count("c") == 32
    assert "picture 2" in page.text
    assert '"groups": {"2": [' in text


def test_a_placeholder_that_the_text_names_is_one_of_its_row() -> None:
    """The ids end with what was typed, so that one of the kept places seems to be typed text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    spelled = Tokenizer(models.WordLevel({"<unk>": 0, "<image>": 1, "what": 2}, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled, unk_token="<unk>", extra_special_tokens={"image_token": "<image>"}
    )
    from fxplain.adapters.text import Speller

    texts = Speller(tokenizer)([1, 1, 1, 1, 2], "<image> what")
    assert [text.special for text in texts] == [True] * 4 + [False]
    assert [str(text) for text in Speller(tokenizer)([1, 2], "<image> what")] == ["<image>", " what"]


def idefics() -> fxplain.Explainer:
    """A toy of the models that take pictures in one tensor [sample, picture, channel, row, column]."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    words = ["<pad>", "<unk>", *marks, "what", "is", "it", "a", "cat"]
    spelled = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    speller = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=marks
    )
    size = {"longest_edge": 56}
    images = hf.Idefics3ImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"model_type": "llama", "vocab_size": len(words), "max_position_embeddings": 64, "pad_token_id": 0}
    config = hf.Idefics3Config(
        vision_config={**small, "image_size": 56, "patch_size": 14},
        text_config={**small, **more, "bos_token_id": None, "eos_token_id": None},
        image_token_id=words.index("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(0)
    model = hf.Idefics3ForConditionalGeneration(config).eval()
    return fxplain.Explainer(model, hf.Idefics3Processor(images, speller, image_seq_len=4))


def test_pictures_that_lie_in_one_tensor_are_pictures() -> None:
    explainer = idefics()
    prompt = explainer.prepare("<image> what <image> is it", images=[photograph(0), photograph(1)])
    found = explainer.explain_generated(prompt, " a cat")
    assert {"pixel_values, picture 1", "pixel_values, picture 2"} < set(found.evidence[0])
    page = Page(answer_page(found))
    classes = [facts.get("class") for tag, facts in page.tags if tag == "span"]
    assert classes.count("picture thumb") == 2
    assert page.text.count("<image> \u00d7 4") == 2
    assert found[0].heat_map().shape == (2, 4, 4)


def qwen() -> fxplain.Explainer:
    """A toy of the models that take patches of all pictures in one tensor [patch, values], any size."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = ["<pad>", "<unk>", *marks, "what", "is", "it", "a", "cat"]
    spelled = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    speller: Any = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=marks
    )
    speller.image_token, speller.video_token = marks[:2]
    images = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 84)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = hf.Qwen2VLConfig(
        text_config={
            **small,
            **ends,
            "vocab_size": len(words),
            "num_key_value_heads": 2,
            "rope_parameters": rope,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=2,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    torch.manual_seed(0)
    model = hf.Qwen2VLForConditionalGeneration(config).eval()
    return fxplain.Explainer(model, hf.Qwen2VLProcessor(images, speller, hf.Qwen2VLVideoProcessor()))


@cache
def asked_of_two_sizes() -> Any:
    explainer = qwen()
    left = np.zeros((56, 84, 3), np.uint8)
    left[:, :14] = 250
    one = "<|vision_start|> <|image_pad|> <|vision_end|>"
    prompt = explainer.prepare(
        f"{one} what {one} is it", images=[photograph(0).repeat(3, 0).repeat(3, 1)[:56, :56], left]
    )
    return explainer.explain_generated(prompt, " a cat")


def test_pictures_of_several_sizes_share_a_space() -> None:
    found = asked_of_two_sizes()
    first, second = found.display.laid["pixel_values"]
    assert (first.picture.shape, second.picture.shape) == ((56, 56, 3), (56, 84, 3))
    assert (first.tokens.shape, second.tokens.shape) == ((4, 4), (4, 6))
    assert second.picture[:, :14].min() > 245  # patches are put together where they were
    assert second.picture[:, 14:].max() < 5
    assert second.tokens[0, :3].tolist() == [16, 17, 20]  # four that are merged stand together
    assert {"pixel_values, picture 1", "pixel_values, picture 2"} < set(found.evidence[0])


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_pictures_of_several_sizes_are_kept(tmp_path: Path, suffix: str) -> None:
    found = asked_of_two_sizes()
    found.save(tmp_path / f"answer{suffix}")
    again = fxplain.load(tmp_path / f"answer{suffix}")
    assert again.evidence == found.evidence
    for own, other in zip(
        again.display.laid["pixel_values"], found.display.laid["pixel_values"], strict=True
    ):
        np.testing.assert_array_equal(own.picture, other.picture)
        np.testing.assert_array_equal(own.tokens, other.tokens)


def test_pictures_of_several_sizes_are_drawn_each_with_its_own_map() -> None:
    found = asked_of_two_sizes()
    page = Page(answer_page(found))
    classes = [facts.get("class") for tag, facts in page.tags if tag == "span"]
    assert classes.count("picture thumb") == 2
    assert page.text.count("picture 2") >= 1
    drawn = [axes for axes in found[0].plot().axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").splitlines()[-1] for axes in drawn] == ["picture 1", "picture 2"]

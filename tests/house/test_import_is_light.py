"""``import fxplain`` stays light: what loads models and draws pictures is imported where it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "transformers",
    "torchvision",
    "timm",
    "matplotlib",
    "jinja2",
    "typer",
    "PIL",
    "tqdm",
    "sklearn",
    "skimage",
}
SCRIPT = """
import sys
import torch  # brings some of them itself (torch.hub: tqdm), which is not ours to answer for
before = set(sys.modules)
{code}
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}} & {heavy}))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import fxplain",
        "import fxplain; [getattr(fxplain, name) for name in getattr(fxplain, '__all__', ())]",
    ],
    ids=["import", "public names"],
)
def test_import_brings_nothing_heavy(code: str) -> None:
    script = SCRIPT.format(code=code, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []

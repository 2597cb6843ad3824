"""docs/method.md: its code runs as it stands, its links lead somewhere, its figure can be drawn again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "method.md").read_text()


def test_code_runs():
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    exec("\n".join(blocks), names)  # the page's own code
    assert names["loss"].isfinite()
    assert names["frames"].shape == (8, 15, 2, 16, 16)
    assert torch.equal(names["frames"][:, :4], names["x0"][:, :4])


def test_links_and_files_exist():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", PAGE):
        if target.startswith("#"):
            heading = target[1:].replace("-", " ")
            assert heading in PAGE.lower()
        else:
            assert (ROOT / "docs" / target).is_file()
    for name in re.findall(r"`(\w+\.py)`", PAGE):
        assert (ROOT / "dydiff_dist" / "diffusion" / name).is_file()


@pytest.mark.slow
def test_figure_is_drawn(tmp_path):
    out = tmp_path / "method.png"
    subprocess.run([sys.executable, str(ROOT / "tools" / "plot_method.py"), "--out", str(out)], check=True)
    assert 10_000 < out.stat().st_size < 300_000

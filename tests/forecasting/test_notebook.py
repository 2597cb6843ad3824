"""The notebook of the docs runs from top to bottom, as Jupyter runs it."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "first_forecast.ipynb"

nbformat = pytest.importorskip("nbformat", reason="notebooks are read by nbformat: pip install nbclient ipykernel")


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5 and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_the_notebook_forecasts_draws_and_scores() -> None:
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="notebooks are run in a kernel: pip install nbclient ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "8 cases; frames given (4, 2, 64, 64), to be forecast (11, 2, 64, 64)" in text
    assert "height, width: (8, 11, 2, 64, 64)" in text and "height, width: (1, 2, 13, 2, 64, 64)" in text
    of_persistence = float(re.search(r"^ all .*$", text, re.M)[0].split()[3])
    assert 0.3 < of_persistence < 0.7  # 0.50 over the demo's 64 test cases
    assert "spread_skill_ratio" in text

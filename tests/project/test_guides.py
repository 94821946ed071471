"""The guides: the gallery lists each, each explains its options, and the cheap ones run. The code
of the pages runs as it is printed."""

import importlib
import re
from pathlib import Path

import pytest

from fastfood import guides

FOLDER = Path(guides.__file__).parent
# The pages with code, and what holds after it has run.
PAGES = {
    "from_fast_hadamard_transform.md": "torch.equal(y.reshape(-1, 32), by_rows)",
    "from_the_authors_code.md": "model.theta.numel() + model.lambda_.numel() == 200",
    "subspace_model.md": "rows.shape == (4096,) and x.shape == (10, 4096)"
    " and type(plain) is torch.nn.Sequential",
    "transform.md": "z.dtype == torch.bfloat16",
}


def guide(name):
    for package in ("sklearn", "transformers", "peft", "optuna"):
        pytest.importorskip(package)
    return importlib.import_module(f"fastfood.guides.{name}")


def test_the_gallery_lists_each_guide_and_page():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "__main__"}
    gallery = (FOLDER / "gallery.md").read_text()
    assert scripts == set(guides.GUIDES)
    assert scripts == set(re.findall(r"\| \[(\w+)\]\(\1\.py\)", gallery))
    pages = {path.name for path in FOLDER.glob("*.md")}
    assert pages == set(re.findall(r"\.\. include:: (.*)", guides.__doc__))
    assert set(PAGES) == {page for page in pages if "```python" in (FOLDER / page).read_text()}


@pytest.mark.parametrize("name", guides.GUIDES)
def test_each_guide_says_what_it_takes(name, capsys):
    module = guide(name)
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for option in re.findall(r"--[\w-]+", guides.GUIDES[name]):
        assert option in told
    assert "Expect " in module.__doc__


def test_rotation_makes_rounding_three_times_better():
    found = guide("rotation").main(["--rows", "64"])
    assert 3 * found["rotated"] < found["plain"]


def test_the_intrinsic_dimension_guide_plans_a_measurement_for_each_method(tmp_path, monkeypatch):
    module, planned = guide("intrinsic_dimension"), []
    monkeypatch.setattr(module.study, "conduct", planned.append)
    with pytest.raises(FileNotFoundError, match="results.json"):  # the study has not run
        module.main(["--out", str(tmp_path)])
    [study] = planned
    assert [m.settings.methods for m in study.measurements] == [("said",), ("did",)]


def test_random_features_come_close_to_the_kernel():
    found = guide("random_features").main(["--rows", "300", "--features", "64,1024"])
    (coarse, _), (fine, accuracy) = found.values()
    assert 3 * fine < coarse and accuracy > 0.8


def test_the_custom_model_streams_the_weights_it_would_hold():
    assert guide("custom_model").main(["--steps", "3"])["same"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """A block marked `python` is ours, and one marked `py` is another package's. test_readme.py
    runs the script that takes arguments."""
    hub = pytest.importorskip("fastfood.hub")
    pushed = []
    monkeypatch.setattr(hub, "push_to_hub", lambda model, name: pushed.append(name))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / page).read_text(), re.S)
    names = {}
    for block in blocks:
        if "sys.argv" not in block:
            exec(compile(block, page, "exec"), names)
    assert eval(PAGES[page], names)
    if page == "subspace_model.md":
        assert pushed == ["user/my-task"]
        assert (tmp_path / "my-task" / "adapter.safetensors").stat().st_size < 500

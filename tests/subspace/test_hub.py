"""Adapters on the Hugging Face hub, which is a folder here: what is uploaded, what its card says,
and what comes back."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from subspace_models import bert, mlp, move, wrap

from fastfood.adapter import base_hash
from fastfood.subspace import SubspaceModel

transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")


def classifier():
    return bert().float()


class Hub:
    """Keeps repositories as folders, with the functions of huggingface_hub."""

    def __init__(self, root, monkeypatch):
        self.root, self.created = root, []
        api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
        api.create_repo.side_effect = self.create_repo
        api.file_exists.side_effect = lambda repo, file, **_: (root / repo / file).exists()
        api.hf_hub_download.side_effect = self.download
        api.upload_folder.side_effect = self.upload
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: api)
        download = mock.create_autospec(huggingface_hub.hf_hub_download, side_effect=self.download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        assert exist_ok or not (self.root / repo_id).exists()
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.created.append((repo_id, private))
        return mock.Mock(repo_id=repo_id)

    def upload(self, *, repo_id, folder_path, **options):
        for path in Path(folder_path).iterdir():
            (self.root / repo_id / path.name).write_bytes(path.read_bytes())
        return mock.Mock(commit_url=f"commit of {repo_id}")

    def download(self, repo_id, filename, revision=None, **_):
        path = self.root / repo_id / filename
        if not path.exists() or revision not in (None, "main"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("404: no such entry")
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Hub(tmp_path / "hub", monkeypatch)


def by_kind(name):
    return name.rsplit(".", 1)[-1]


def test_to_the_hub_and_back(hub):
    model = move(wrap(classifier(), d=40))
    assert model.push_to_hub("me/x", private=True, dtype=torch.float16) == "commit of me/x"
    assert hub.created == [("me/x", True)]
    folder = hub.root / "me" / "x"
    assert {path.name for path in folder.iterdir()} == {"adapter.safetensors", "README.md"}
    for options in ({}, {"revision": "main"}):
        loaded = SubspaceModel.from_pretrained(classifier(), "me/x", **options)
        assert torch.equal(loaded.theta, model.theta.half().float())
    with pytest.raises(FileNotFoundError, match="me/x: no such file or folder, and no .*404"):
        SubspaceModel.from_pretrained(classifier(), "me/x", revision="v2")
    model.save_pretrained("me/x")  # a local folder takes precedence over the hub
    assert torch.equal(SubspaceModel.from_pretrained(classifier(), "me/x").theta, model.theta)


@pytest.mark.parametrize(
    "path", ["missing", "./a/b", "/a/b", "a/b/c", "a/b.safetensors", Path("a/b")]
)
def test_what_names_no_repository_is_not_asked_for(hub, monkeypatch, path):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(FileNotFoundError, match="no such adapter file"):
        SubspaceModel.from_pretrained(classifier(), path)


def test_the_card(hub):
    base = classifier()
    base.config._name_or_path = "google/bert_tiny"
    model = wrap(base, d=1040)
    model.push_to_hub("me/x")
    path = hub.root / "me" / "x" / "README.md"
    card = huggingface_hub.ModelCard.load(path)
    assert card.data.library_name == "fastfood"
    assert card.data.base_model == "google/bert_tiny"
    assert card.data.pipeline_tag == "text-classification"
    assert {"fastfood", "said"} <= set(card.data.tags)
    size = path.with_name("adapter.safetensors").stat().st_size
    D, hash_ = model.projection.D, base_hash(model)
    for stated in (
        "| 1,040 |",
        f"| {D:,} |",
        f"{size:,} bytes",
        "1,036 coordinates",
        hash_,
        "| 5 |",
    ):
        assert stated in card.text
    assert "the 4 scales" not in card.text and "4 scales" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    with mock.patch.object(transformers.BertForSequenceClassification, "from_pretrained") as load:
        load.return_value = classifier()
        scope = {}
        exec(code, scope)
    load.assert_called_once_with("google/bert_tiny", dtype="float32", num_labels=2)
    assert type(scope["model"]) is transformers.BertForSequenceClassification


def test_the_card_of_any_module(hub):
    wrap(mlp(), method="did", groups=by_kind).push_to_hub("me/y")
    card = huggingface_hub.ModelCard.load(hub.root / "me" / "y" / "README.md")
    assert card.data.base_model is None and card.data.pipeline_tag is None
    assert "scales" not in card.text
    assert 'from_pretrained(base, "me/y", groups=function_of_the_training)' in card.text


def test_an_edited_card_stays(hub):
    path = hub.root / "me" / "x" / "README.md"
    wrap(mlp(), d=30).push_to_hub("me/x")
    wrap(mlp(), d=31).push_to_hub("me/x")
    assert "| 31 |" in path.read_text()
    path.write_text("mine")
    wrap(mlp(), d=32).push_to_hub("me/x")
    assert path.read_text() == "mine"
    assert len(SubspaceModel.from_pretrained(mlp(), "me/x")._leaves()[0]) > 20


def test_nothing_is_created_for_values_that_cannot_be_saved(hub):
    model = wrap(mlp())
    with torch.no_grad():
        model.theta[0] = float("nan")
    with pytest.raises(ValueError, match="wanted values that are finite"):
        model.push_to_hub("me/x")
    assert not hub.root.exists() and not hub.created

"""Adapters on the Hugging Face hub: a repository with adapter.safetensors and a card that says how
to load it. Only this file needs huggingface_hub, and only when it is called.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from . import adapter
from .coordinates import Coordinates

__all__ = ["local", "model_card", "push_to_hub"]

CARD_NAME = "README.md"
MARK = "<!-- Written anew at each push_to_hub: delete this line to keep changes to this card. -->"

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_BASE = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # names of the hub's first years have no owner


def local(
    path: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> str | os.PathLike:
    """`path` where it exists or names no repository, else the file downloaded from the hub.

    revision: branch, tag or commit. token: of the hub, by default the one that is logged in.

    Raises FileNotFoundError naming `path` if the hub has no such adapter, cannot be reached, or
    huggingface_hub is not installed.
    """
    file = adapter.FILE_NAME
    if not isinstance(path, str) or Path(path).exists() or path.endswith(".safetensors"):
        return path
    if not _REPOSITORY.fullmatch(path):
        return path
    try:
        return _huggingface_hub().hf_hub_download(path, file, revision=revision, token=token)
    except (ImportError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{path}: no such file or folder, and no {file} from the hub: {error}"
        ) from error


def push_to_hub(
    model: Coordinates,
    repo_id: str,
    *,
    dtype: torch.dtype = torch.float32,
    levels: int | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a fastfood adapter",
    create_pr: bool = False,
) -> str:
    """Uploads the model's adapter.safetensors and README.md in one commit, and returns its address.

    repo_id: "user/name", created if missing, with `private` as in huggingface_hub. dtype, levels:
    as in adapter.save, whose errors it raises before anything is created. token: of the hub.
    revision: the branch. commit_message: its title. create_pr: opens a pull request instead. An
    existing README.md without the card's first comment was edited by somebody, and stays.

    Raises ImportError without huggingface_hub, and what that raises if the hub refuses.
    """
    huggingface_hub = _huggingface_hub()
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        size = adapter.save(model, folder, dtype, levels).stat().st_size
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not _edited(api, repo_id, revision):
            card = model_card(model, repo_id, size)
            Path(folder, CARD_NAME).write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    return commit.commit_url


def _edited(api, repo_id: str, revision: str | None) -> bool:
    """Whether the repository has a card that somebody wrote or changed."""
    if not api.file_exists(repo_id, CARD_NAME, revision=revision):
        return False
    path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision)
    return MARK not in Path(path).read_text(encoding="utf-8")


def model_card(model: Coordinates, repo_id: str, size: int) -> str:
    """README.md of the repository `repo_id`, whose adapter.safetensors, of `model`, has `size`
    bytes."""
    config, D, groups = model.subspace_config, model.projection.D, len(model.group_names)
    kind, base = type(model.wrapped).__name__, _base(model.wrapped)
    header = _huggingface_hub().ModelCardData(
        library_name="fastfood",
        base_model=base,
        pipeline_tag=_task(model.wrapped),
        tags=["fastfood", "intrinsic-dimension", "subspace", config.method],
    )
    coordinates = len(model.theta)
    function = ", groups=function_of_the_training" if callable(config.groups) else ""
    scales = f" and {groups:,} scales of layers" if model.lambda_ is not None else ""
    return f"""---
{header.to_yaml()}
---

{MARK}

# {repo_id.rpartition("/")[2]}

A fine-tuned {kind} as {config.d:,} numbers in {size:,} bytes: {coordinates:,} coordinates of a
random subspace{scales}. The {D:,} weights are made from
them, the seed and the base model by the Python package fastfood-torch.

```python
{_base_code(model.wrapped, base)}

model = SubspaceModel.from_pretrained(base, "{repo_id}"{function})
model = model.merge_and_unload()  # plain weights again, if wanted
```

| | |
|---|---|
| trained numbers d | {config.d:,} |
| weights D | {D:,} |
| method | {config.method} |
| groups | {groups:,}, {"by a function" if callable(config.groups) else config.groups} |
| projection | {config.projection}, normalization {config.normalization} |
| seed | {config.seed} |
| hash of the base model | `{adapter.base_hash(model)}` |

The numbers mean something on the base model of the training alone, so loading compares hashes. If
it tells of other base weights, the base is of another revision, or its new head was initialised
with another seed. If it tells of names, shapes, types or groups, the base is of another
architecture or dtype.
"""


def _base(wrapped: nn.Module) -> str | None:
    """The base model's name on the hub, if it came from there."""
    name = getattr(getattr(wrapped, "config", None), "_name_or_path", "")
    return name if _BASE.fullmatch(name) and not Path(name).exists() else None


def _base_code(wrapped: nn.Module, base: str | None) -> str:
    """The lines of Python that import what is needed and make the base model."""
    kind = type(wrapped).__name__
    if base is None:
        return f"""from fastfood import SubspaceModel

base = ...  # the {kind} as it was before training, the same weights in the same dtype"""
    dtype = str(next(wrapped.parameters()).dtype).removeprefix("torch.")
    labels = f", num_labels={wrapped.num_labels}" if hasattr(wrapped, "num_labels") else ""
    return f"""from fastfood import SubspaceModel
from transformers import {kind}

base = {kind}.from_pretrained("{base}", dtype="{dtype}"{labels})"""


def _task(wrapped: nn.Module) -> str | None:
    """The hub's name for what a transformers model does."""
    if "transformers" not in sys.modules:
        return None
    from transformers.modelcard import TASK_MAPPING

    for task, models in TASK_MAPPING.items():
        if type(wrapped).__name__ in models.values():
            return task
    return None


def _huggingface_hub():
    """The huggingface_hub package, which only the hub needs."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub

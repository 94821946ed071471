"""What a measurement needs of a model's checkpoint beside its weights: the tokenizer, what its name
tells of its own training on the task, and whether the hub can be asked for it."""

import json
import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..settings.sources import KNOWN_TRAINING_DATA
from ..settings.task import BUNDLED, TaskSettings


def contamination(settings: TaskSettings) -> tuple[str, ...]:
    """What the names of a model tell of its training on the data of the task."""
    names = [settings.model or "", _name_before(Path(settings.model or "", "config.json"))]
    names = [name.lower().replace("_", "-").rstrip("/") for name in names]
    return tuple(
        note
        for words, tasks, note in KNOWN_TRAINING_DATA
        if settings.task in tasks and any(re.search(words, name) for name in names)
    )


def _name_before(config: Path) -> str:
    """The name that a model's configuration says it had, or "" where it says none."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        return str(settings["_name_or_path"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return ""


def use_cache_without_network(settings: TaskSettings, tokenizer: str | None = None) -> None:
    """Where the hub is needed but out of reach, turns its client to the files of its cache, which
    otherwise comes after minutes of retries. To be called before transformers is imported."""
    data_at_hub = settings.task not in BUNDLED and settings.data is None
    read = [name for name in (settings.model, tokenizer) if name is not None]
    model_at_hub = not all(Path(name).is_dir() for name in read)
    if not (data_at_hub or model_at_hub) or "HF_HUB_OFFLINE" in os.environ:
        return
    hub = Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urlopen(hub, timeout=10).close()
    except HTTPError:
        pass  # an answer all the same
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the workers inherit it


def load_tokenizer(name: str, revision: str | None = None):
    """The tokenizer of a folder or of a model of the hub; raises ValueError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: no tokenizer in {name!r} ({reason})") from error


def writing_config(settings: TaskSettings):
    """The configuration of a model that writes, of one stack of layers or of an encoder and a
    decoder. Raises ValueError where the checkpoint is of another kind."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    got = repr(settings.model)
    wanted = "a folder or hub name of a causal or encoder-decoder language model"
    try:
        config = AutoConfig.from_pretrained(
            settings.model, revision=settings.revision or "main", trust_remote_code=False
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: wanted {wanted}, got {got} ({reason})") from error
    kinds = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if not config.is_encoder_decoder:
        kinds = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known = kinds.get(config.model_type, ())
    known = {known} if isinstance(known, str) else set(known)
    architectures = config.architectures or []
    if not known or (architectures and not known & set(architectures)):
        named = ", ".join(architectures) or config.model_type
        raise ValueError(f"model: wanted {wanted}, got {got}, a {named}")
    return config

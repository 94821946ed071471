"""Rewards of what a model writes: a Python function that the user names, which takes what TRL's
trainers give it, or 1 for the right answer. A function is imported and run only where it was asked
for; no file of a model, a data set or a study does that."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.written import WrittenTask

Reward = Callable[..., Sequence[float]]
TRIED = 4  # rows that a function is tried on before any training


def load_reward(name: str) -> Reward:
    """The function MODULE:FUNCTION or FILE.py:FUNCTION; modules are also looked for in the working
    folder. Raises ValueError where there is none."""
    module_name, function_name = name.rsplit(":", 1)
    wanted = "a Python function, MODULE:FUNCTION or FILE.py:FUNCTION"
    try:
        if module_name.endswith(".py"):
            module = _module_of_file(Path(module_name))
        else:
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())
            module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (Exception, SystemExit) as error:  # of any code in the module
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"reward: wanted {wanted}, got {name!r} ({reason:.200})") from error
    if not callable(function):
        raise ValueError(f"reward: wanted {wanted}, got {name!r}, a {type(function).__name__}")
    return function


def _module_of_file(path: Path):
    """The module in a file, which is run once in a process."""
    name = "fastfood_reward_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # as for each name that ends in .py
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def hash_reward(name: str) -> str:
    """A hash of the source of the file that a reward's function is in."""
    function = load_reward(name)
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):  # a function that was not written in Python
        source = name
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def check_reward(name: str, task: WrittenTask) -> None:
    """Calls a reward's function once, on a few completions of the training data. Raises ValueError
    where it raises or does not give a number for each."""
    rows = task.train[:TRIED]
    rewards_of(load_reward(name), task, rows, [row["completion"] for row in rows])


def rewards_of(
    reward: Reward, task: WrittenTask, rows: Sequence[dict], texts: Sequence[str]
) -> list[float]:
    """The reward of each text that was written after the prompt of its row.

    The function is called as TRL's trainers call it: with `prompts` and `completions`, lists of
    messages where the prompts are such, `completion_ids`, and `reference`, the data's completions.
    Raises ValueError, naming what it did, where it does not give a finite number for each.
    """
    prompts = [row["asked"] for row in rows]
    completions = [_as_asked(row["asked"], text) for row, text in zip(rows, texts, strict=True)]
    ids = [task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    references = [row["completion"] for row in rows]
    wanted = f"a function that gives {len(rows)} finite numbers for {len(rows)} completions"
    try:
        given = reward(
            prompts=prompts, completions=completions, completion_ids=ids, reference=references
        )
        rewards = [float(number) for number in given]
    except Exception as error:  # of any code in the function
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"reward: wanted {wanted}, got {got:.200}") from error
    if len(rewards) != len(rows) or not all(map(math.isfinite, rewards)):
        raise ValueError(f"reward: wanted {wanted}, got {str(given):.200}")
    return rewards


def answer_rewards(task: WrittenTask) -> Reward:
    """The reward 1 for the answer of the data's completion, and 0 for any other."""

    def right_answer(completions: list, reference: list[str], **others) -> list[float]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        pairs = zip(map(task.answer, texts), map(task.answer, reference), strict=True)
        return [float(given is not None and given == wanted) for given, wanted in pairs]

    return right_answer


def _as_asked(asked: str | list, text: str) -> str | list:
    """A completion in the form of its prompt: a text, or one message."""
    return text if isinstance(asked, str) else [{"role": "assistant", "content": text}]

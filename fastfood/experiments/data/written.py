"""The data of models that write: prompts with their completions, from two columns of text or from
chat messages, and what of a text counts as its answer. The rows hold the tokens that a model reads
and those that it should write, which end with the end of the text."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..settings.measurement import Settings
from ..settings.sources import ARITHMETIC, PARTS, SOURCES, Source
from .arithmetic import arithmetic_parts
from .checkpoints import contamination, load_tokenizer, writing_config
from .parts import divide, hash_rows, is_train, normalized, scored_rows
from .readers import Columns
from .rows import read_splits
from .task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that no loss counts
NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d*)?")
Answer = str | Decimal | None


@dataclass(frozen=True, eq=False, kw_only=True)
class WrittenTask(Task):
    """A task whose rows are texts, {"prompt", "completion"}, their tokens, {"prompt_ids",
    "completion_ids"}, and as "asked" what TRL's trainers take: the prompt, or its messages."""

    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    encoder_decoder: bool
    answer: Callable[[str], Answer] = field(repr=False)  # of a text; None where it has none
    max_new_tokens: int

    def overlap(self) -> int:
        """Of prompts alone."""
        seen = {normalized([row["prompt"]]) for row in self.train}
        return sum(normalized([row["prompt"]]) in seen for row in self.test)

    def prompts(self, rows: Sequence[dict]) -> dict:
        """The tokens of prompts as a batch to go on from: int64 (rows, tokens), with a mask.
        Prompts of one stack of layers are padded on the left, where nothing is to be written."""
        ids = [row["prompt_ids"] for row in rows]
        left = not self.encoder_decoder
        width = max(map(len, ids))
        return {
            "input_ids": _padded(ids, self.tokenizer.pad_token_id, width, left),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0, width, left),
        }


def load_written(settings: Settings) -> WrittenTask:
    """Loads the task of completed settings whose objective is sft or grpo.

    Raises ValueError for missing files or columns, a model that does not write, completions in
    which no answer is found, rows that are all too long, and an unreachable hub.
    """
    encoder_decoder = writing_config(settings).is_encoder_decoder
    tokenizer = _tokenizer(settings)
    parts, origins = _parts(settings, tokenizer)
    for part in ("validation", "test"):
        chosen = scored_rows(len(parts[part]), settings.eval_rows)
        if len(chosen) < len(parts[part]):
            origins[part] += f" ({len(chosen)} of {len(parts[part])})"
            parts[part] = parts[part].select(chosen)
    data_hash = hash_rows(parts)
    answer = answer_reader(settings.answer)
    rows: dict[str, Any] = {}
    for part in PARTS:
        texts = list(parts[part])
        rows[part] = _with_tokens(texts, tokenizer, encoder_decoder)
        origins[part] += f", {len(rows[part])} rows" + _unanswered(settings, part, texts, answer)
    short = [row for row in rows["train"] if token_count(row) <= settings.max_length]
    if not short:
        least = min(map(token_count, rows["train"]))
        wanted = f"training rows of at most {settings.max_length} tokens"
        raise ValueError(f"max_length: wanted {wanted}, got {least} and more")
    if len(short) < len(rows["train"]):
        longer = len(rows["train"]) - len(short)
        origins["train"] += f", {longer} of more than {settings.max_length} tokens left out"
    pad, collate = tokenizer.pad_token_id, _collate_pairs if encoder_decoder else collate_joined
    return WrittenTask(
        **rows | {"train": short},
        collate=lambda batch: collate(batch, pad),
        splits=origins,
        data_hash=data_hash,
        metric=settings.metric,
        contamination=contamination(settings),
        tokenizer=tokenizer,
        encoder_decoder=encoder_decoder,
        answer=answer,
        max_new_tokens=settings.max_new_tokens or max(len(row["completion_ids"]) for row in short),
    )


def answer_reader(pattern: str | None) -> Callable[[str], Answer]:
    """A function that gives the answer in a text: all of it without the spaces around it, or the
    last match of the pattern, of its first group where it has one, and None where it does not
    match. A matched number is read as one, so that 1,000 and 1000.0 are the same answer."""
    if pattern is None:
        return str.strip
    compiled = re.compile(pattern)

    def answer(text: str) -> Answer:
        matches = list(compiled.finditer(text))
        if not matches:
            return None
        found = (matches[-1][1 if compiled.groups else 0] or "").strip()
        return Decimal(found.replace(",", "")) if NUMBER.fullmatch(found) else found

    return answer


def _tokenizer(settings: Settings):
    tokenizer = load_tokenizer(settings.model, settings.revision)
    if tokenizer.eos_token_id is None:
        wanted = "a tokenizer with a token for the end of a text"
        raise ValueError(f"model: wanted {wanted}, got that of {settings.model!r}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (settings.chat or settings.messages_column) and not tokenizer.chat_template:
        name = "chat" if settings.chat else "messages_column"
        wanted = "a model whose tokenizer has a chat template"
        raise ValueError(f"{name}: wanted {wanted}, got {settings.model!r}")
    return tokenizer


def _parts(settings: Settings, tokenizer) -> tuple[dict, dict]:
    """The parts by name, as `datasets.Dataset` of the texts "prompt" and "label" and of "asked" as
    JSON, and where the rows of each came from."""
    from datasets import Dataset

    def dataset(where: str, pairs: Iterable[tuple[str | list, str]]) -> Dataset:
        rows = []
        for number, (asked, completion) in enumerate(pairs, 1):
            prompt = asked
            if not isinstance(asked, str):
                prompt = _templated(tokenizer, f"{where} row {number}", asked)
            rows.append({"prompt": prompt, "label": completion, "asked": json.dumps(asked)})
        return Dataset.from_list(rows)

    if settings.task in ARITHMETIC:
        parts = {
            part: dataset(
                settings.task, ((_asked(settings, r["prompt"]), r["completion"]) for r in rows)
            )
            for part, rows in arithmetic_parts(settings.task).items()
        }
        return parts, dict.fromkeys(parts, settings.task)
    source = _source(settings)
    columns = Columns(source.texts, source.label, (list if settings.messages_column else str,))
    splits = read_splits(settings.task, settings.data, source, columns)
    written = {}
    for name, rows in splits.items():
        if not rows.data.column("label").null_count:  # else of all rows: it has no completions
            where = f"data: {settings.task} {name}"
            written[name] = dataset(where, _pairs(settings, source, where, rows))
    train = next(iter(splits), None)
    if train not in written or not is_train(train, source):
        wanted = f"wanted completions in {source.splits[0]} of {settings.task}"
        raise ValueError(f"data: {wanted}, got none")
    described = source._replace(texts=("prompt",), written=True)
    return divide(settings.task, settings.data, described, written)


def _source(settings: Settings) -> Source:
    """The data set: a known one, or the one that the settings describe."""
    if settings.task in SOURCES:
        return SOURCES[settings.task]
    texts = () if settings.messages_column else (settings.prompt_column,)
    label = settings.messages_column or settings.completion_column
    if "label" in texts or label in texts:
        wanted = "a column that is not the completion's and not called label"
        raise ValueError(f"prompt_column: wanted {wanted}, got {settings.prompt_column!r}")
    hub = tuple(settings.task.split(":", 1))
    return Source(hub, texts, None, settings.splits, label, whole=True, written=True)


def _pairs(
    settings: Settings, source: Source, where: str, rows: Iterable[dict]
) -> Iterator[tuple[str | list, str]]:
    """What a model is asked in each row, and what it should write."""
    for number, row in enumerate(rows, 1):
        if settings.messages_column:
            yield _split_messages(f"{where} row {number}", row["label"])
        else:
            yield _asked(settings, row[source.texts[0]]), row["label"]


def _asked(settings: Settings, prompt: str) -> str | list:
    """A prompt as it is, or as the only message of a chat."""
    return [{"role": "user", "content": prompt}] if settings.chat else prompt


def _split_messages(where: str, messages: list) -> tuple[list, str]:
    """The messages before the last one, and its text."""
    for message in messages:
        fits = isinstance(message, dict)
        fits = fits and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not fits:
            wanted = "messages with a text role and a text content"
            raise ValueError(f"{where}: wanted {wanted}, got {message!r:.100}")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        wanted = "messages of which the last one is the assistant's"
        raise ValueError(f"{where}: wanted {wanted}, got the roles {roles or 'of none'}")
    kept = [{key: message[key] for key in ("role", "content")} for message in messages]
    return kept[:-1], kept[-1]["content"]


def _templated(tokenizer, where: str, messages: list) -> str:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise errors of their own
        reason = " ".join(str(error).split())[:200]
        wanted = "messages that the model's chat template takes"
        raise ValueError(f"{where}: wanted {wanted}, got {reason}") from error


def _unanswered(settings: Settings, part: str, rows: list[dict], answer) -> str:
    """What is to be said of completions without an answer; raises ValueError where none has one."""
    without = sum(answer(row["label"]) is None for row in rows)
    if without == len(rows):
        wanted = f"a pattern that is found in completions of {part}"
        got = f"which is in none of {without}, such as {rows[0]['label'][-60:]!r}"
        raise ValueError(f"answer: wanted {wanted}, got {settings.answer!r}, {got}")
    return f", {without} of them without an answer" if without else ""


def _with_tokens(rows: list[dict], tokenizer, encoder_decoder: bool) -> list[dict]:
    """The rows of a part as `WrittenTask` has them."""
    asked, end = [json.loads(row["asked"]) for row in rows], tokenizer.eos_token_id
    templated = not isinstance(asked[0], str)  # the template has put its special tokens in
    texts = {name: [row[name] for row in rows] for name in ("prompt", "label")}
    try:
        prompts = tokenizer(texts["prompt"], add_special_tokens=not templated)["input_ids"]
        completions = tokenizer(texts["label"], add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers of few characters raise errors of their own
        wanted = "texts that the model's tokenizer has tokens for"
        got = f"others, such as {texts['prompt'][0]!r:.100} ({error})"
        raise ValueError(f"data: wanted {wanted}, got {got}") from error
    if not encoder_decoder and not templated:  # the model is to go on from here
        prompts = [ids[:-1] if ids[-1:] == [end] else ids for ids in prompts]
    return [
        {
            "prompt": prompt,
            "completion": completion,
            "asked": given,
            "prompt_ids": prompt_ids or [end],  # a model has to begin with some token
            "completion_ids": [*completion_ids, end],
        }
        for prompt, completion, given, prompt_ids, completion_ids in zip(
            *texts.values(), asked, prompts, completions, strict=True
        )
    ]


def token_count(row: dict) -> int:
    """How many tokens a row's prompt and completion have together."""
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def collate_joined(batch: list[dict], pad: int) -> dict:
    """A batch for one stack of layers: each prompt and its completion, whose loss alone counts."""
    ids = [row["prompt_ids"] + row["completion_ids"] for row in batch]
    labels = [[IGNORED] * len(row["prompt_ids"]) + row["completion_ids"] for row in batch]
    return _batch(ids, labels, pad)


def _collate_pairs(batch: list[dict], pad: int) -> dict:
    """A batch for an encoder and a decoder."""
    ids = [row["prompt_ids"] for row in batch]
    return _batch(ids, [row["completion_ids"] for row in batch], pad)


def _batch(ids: list[list[int]], labels: list[list[int]], pad: int) -> dict:
    width = max(map(len, ids))
    return {
        "input_ids": _padded(ids, pad, width),
        "attention_mask": _padded([[1] * len(row) for row in ids], 0, width),
        "labels": _padded(labels, IGNORED, max(map(len, labels))),
    }


def _padded(rows: Sequence[list[int]], fill: int, width: int, left: bool = False):
    import torch

    padded = torch.full((len(rows), width), fill)
    for row, ids in zip(padded, rows, strict=True):
        row[width - len(ids) if left else 0 :][: len(ids)] = torch.tensor(ids)
    return padded

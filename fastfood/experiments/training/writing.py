"""What a model writes, and what it thinks of the completions that it should write: greedy
generation in batches with a cache of keys and values, and every token's log-probability in one
forward. Both leave the model's mode and the random numbers as they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..data.written import IGNORED, WrittenTask, token_count
from ..settings.metrics import score
from .rewards import Reward, rewards_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATED_TOGETHER = 128  # rows
LOGITS_TOGETHER = 1 << 28  # the most entries of a forward's logits, 1 GiB in float32


class TokenScores(NamedTuple):
    """What a model thinks of a row's completion: float64 log-probabilities in nats (tokens,), and
    whether each token is the likeliest one (tokens,)."""

    log_probabilities: Tensor
    likeliest: Tensor


def score_written(
    metric: str,
    model: "PreTrainedModel",
    task: WrittenTask,
    rows: Sequence[dict],
    bf16: bool = False,
    reward: Reward | None = None,
) -> float:
    """The score of rows of the task: the share of right answers (exact), the share of the
    completions' tokens that are the likeliest (tokens), minus their mean loss in nats (loss), or
    the mean reward of what is written (reward)."""
    if metric in ("tokens", "loss"):
        scored = token_scores(model, task, rows, bf16)
        if metric == "tokens":
            likeliest = torch.cat([row.likeliest for row in scored]).tolist()
            return score(metric, likeliest, [True] * len(likeliest))
        losses = -torch.cat([row.log_probabilities for row in scored])
        return score(metric, losses.tolist(), [])
    texts = generate(model, task, rows, bf16)
    if metric == "reward":
        return score(metric, rewards_of(reward, task, rows, texts), [])
    answers = [task.answer(text) for text in texts]
    return score(metric, answers, [task.answer(row["completion"]) for row in rows])


def generate(
    model: "PreTrainedModel", task: WrittenTask, rows: Sequence[dict], bf16: bool = False
) -> list[str]:
    """What the model writes after each row's prompt, always the likeliest token, up to the end of
    the text or `task.max_new_tokens`, without special tokens."""
    texts = [""] * len(rows)
    with evaluating(model, bf16) as device:
        for numbers in _by_length(rows, GENERATED_TOGETHER):
            inputs = task.prompts([rows[i] for i in numbers])
            inputs = {name: x.to(device) for name, x in inputs.items()}
            written = model.generate(**inputs, **_greedily(model, task))
            read = 0 if task.encoder_decoder else inputs["input_ids"].shape[1]
            decoded = task.tokenizer.batch_decode(written[:, read:], skip_special_tokens=True)
            for i, text in zip(numbers, decoded, strict=True):
                texts[i] = text
    return texts


def _greedily(model: "PreTrainedModel", task: WrittenTask) -> dict:
    """The arguments of `generate`. Checkpoints may bring others, such as a penalty of repetitions,
    which would make it another model's score."""
    ends = model.generation_config.eos_token_id
    ends = {task.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return {
        "max_new_tokens": task.max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "use_cache": True,
        "eos_token_id": sorted(ends),
        "pad_token_id": task.tokenizer.pad_token_id,
    }


def token_scores(
    model: "PreTrainedModel", task: WrittenTask, rows: Sequence[dict], bf16: bool = False
) -> list[TokenScores]:
    """What the model thinks of each row's completion, given its prompt and the tokens before."""
    scored: list[TokenScores | None] = [None] * len(rows)
    shift = 0 if task.encoder_decoder else 1  # a causal model's logits are of the next token
    entries = max(map(token_count, rows)) * model.get_output_embeddings().weight.shape[0]
    together = min(GENERATED_TOGETHER, max(1, LOGITS_TOGETHER // entries))
    with evaluating(model, bf16) as device:
        for numbers in _by_length(rows, together):
            batch = task.collate([rows[i] for i in numbers])
            batch = {name: x.to(device) for name, x in batch.items()}
            logits = model(**batch).logits
            labels = batch["labels"][:, shift:]
            logits = logits[:, : labels.shape[1]]
            for i, row_logits, row_labels in zip(numbers, logits, labels, strict=True):
                counted = row_labels != IGNORED
                wanted, kept = row_labels[counted], row_logits[counted].double()
                log_probabilities = kept.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
                likeliest = kept.argmax(-1) == wanted
                scored[i] = TokenScores(log_probabilities.cpu(), likeliest.cpu())
    return scored


@contextmanager
def evaluating(model: nn.Module, bf16: bool) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            yield device
    finally:
        model.train(was_training)


def _by_length(rows: Sequence[dict], together: int) -> Iterator[list[int]]:
    """The numbers of the rows of each batch, prompts by length, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))
    for start in range(0, len(rows), together):
        yield order[start : start + together]

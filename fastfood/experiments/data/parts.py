"""Divides the labelled rows of a task into its three parts, and looks at what they hold: which rows
are scored, how many test rows are training rows too, and a hash of all."""

import hashlib
import json
import random
import re
import statistics
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from ..settings.sources import PARTS, Source

CARVED_SHARE, CARVED_MOST = 0.1, 1000
HELD_OUT = {"test": (0.2, 2000), "validation": (0.1, 1000)}  # of a split: its share, and at most


def is_train(name: str, source: Source) -> bool:
    """Whether a split of this name is the one to train on."""
    return name in (source.splits[0], PARTS[0])


def divide(task: str, data: str | None, source: Source, labelled: dict) -> tuple[dict, dict]:
    """Train, validation and test by name, and where the rows of each came from. Raises ValueError
    where there is nothing to test on."""
    if len(labelled) > 1:
        return choose_parts(labelled)
    (name, rows), *_ = labelled.items()
    if len(source.splits) == 1:
        return hold_out(f"data: {task} {name}", name, rows, source)
    wanted, hint = " or ".join(source.splits[1:]), ""
    if source.whole:
        hint = f"; --splits {name} alone has parts of {name} held out"
    elif data is not None:
        hint = "; the file of validation may also be called dev or valid"
    raise ValueError(f"data: wanted a labelled {wanted} for {task}, got none{hint}")


def choose_parts(labelled: dict) -> tuple[dict, dict]:
    """The parts of a task by name, and where the rows of each came from.

    Two labelled splits beside train serve as validation and test; a single one is the test, and
    the validation part is carved from train.
    """
    from sklearn.model_selection import train_test_split

    name, *others = labelled
    train = labelled[name]
    parts = {"train": train, "validation": labelled[others[0]], "test": labelled[others[-1]]}
    origins = {"train": name, "validation": others[0], "test": others[-1]}
    if len(others) == 1:
        count = min(max(1, round(CARVED_SHARE * len(train))), CARVED_MOST)
        if count >= len(train):
            raise ValueError(f"data: wanted at least 2 training rows, got {len(train)}")
        kept, carved = train_test_split(range(len(train)), test_size=count, random_state=0)
        parts |= {"train": train.select(kept), "validation": train.select(carved)}
        origins |= {
            "train": f"{name} without {count} rows",
            "validation": f"{count} rows of {name}",
        }
    return parts, origins


def hold_out(where: str, name: str, rows, source: Source) -> tuple[dict, dict]:
    """Like `choose_parts`, of the only split of a data set, whose name is `name`.

    Which part a row falls into follows from the hash of its texts and from its rank among those of
    the same label. So the parts are always the same, whatever the order of the rows; rows that are
    added move few others; each part has its share of every class; and rows of equal texts, but for
    case, spaces and punctuation, stay together. Raises ValueError, which begins with `where`, where
    there are too few different rows.
    """
    labels = list(rows["label"])
    classes = [0] * len(rows) if source.of_numbers or source.written else labels
    chosen = _ranked(list(_normalized(rows, source.texts)), classes)
    if not all(chosen.values()) or len({labels[i] for i in chosen["train"]}) < 2:
        wanted = "more rows of different texts, to hold out some for validation and test"
        raise ValueError(f"{where}: wanted {wanted}, got {len(rows)} rows")
    away = len(chosen["validation"]) + len(chosen["test"])
    origins = {part: f"{len(indices)} rows of {name}" for part, indices in chosen.items()}
    origins["train"] = f"{name} without {away} rows"
    parts = ("train", "validation", "test")
    return {part: rows.select(chosen[part]) for part in parts}, origins


def _ranked(digests: Sequence[bytes], labels: Sequence) -> dict[str, list[int]]:
    """The indices of the rows of each part, ascending; a part is empty where there are too few."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        alike[digest].append(index)
    strata = defaultdict(list)
    for digest in sorted(alike):
        label = statistics.mode(sorted(labels[index] for index in alike[digest]))
        strata[label].append(alike[digest])
    shares = {part: min(share, most / len(labels)) for part, (share, most) in HELD_OUT.items()}
    chosen: dict[str, list[int]] = {part: [] for part in shares}
    left = []  # a list of groups for each label
    for groups in strata.values():
        count = sum(map(len, groups))
        for part, share in shares.items():
            taken, groups = _take(groups, round(share * count))
            chosen[part] += taken
        left.append(groups)
    for indices in chosen.values():
        groups = max(left, key=len)
        if not indices and len(groups) > 1:  # no class has enough rows for a share of its own
            smallest = min(groups, key=len)
            groups.remove(smallest)
            indices += smallest
    chosen["train"] = [index for groups in left for group in groups for index in group]
    return {part: sorted(indices) for part, indices in chosen.items()}


def _take(groups: list[list[int]], most: int) -> tuple[list[int], list[list[int]]]:
    """The members of the first groups that fit into `most`, and the other groups."""
    taken: list[int] = []
    left = []
    for group in groups:
        if len(taken) + len(group) <= most:
            taken += group
        else:
            left.append(group)
    return taken, left


def scored_rows(count: int, most: int | None) -> list[int]:
    """The rows to score: all, or a random choice that is always the same."""
    if most is None or most >= count:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), most))


def hash_rows(parts: dict) -> str:
    """A hash of the rows of all parts."""
    digest = hashlib.sha256()
    for name, rows in parts.items():
        digest.update(name.encode())
        for batch in rows.iter(batch_size=1000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=4)
def count_overlap(train, test, texts: tuple[str, ...]) -> int:
    """How many rows of `test` have the normalized texts of a row of `train`."""
    seen = set(_normalized(train, texts))
    return sum(row in seen for row in _normalized(test, texts))


def _normalized(rows, texts: tuple[str, ...]) -> Iterator[bytes]:
    """A digest of every row's texts in lower case, with words alone."""
    return map(normalized, zip(*(rows[column] for column in texts), strict=True))


def normalized(texts: Iterable[str]) -> bytes:
    """A digest of texts in lower case, with words alone."""
    words = (re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()) for text in texts)
    return hashlib.blake2b("\0".join(map(" ".join, words)).encode(), digest_size=16).digest()

"""Makes of the labels of a task's splits what a model is trained on: the numbers 0..k-1 of k
classes, or the numbers that are to be predicted."""

from collections.abc import Sequence

from ..settings.sources import Source
from .parts import is_train

SHOWN = 9  # labels in an error
UNLABELLED = ({-1}, {None})  # the labels of such a split; the hub marks it by -1


def numbered(task: str, source: Source, splits: dict) -> tuple[dict, int]:
    """The labelled ones of `splits` with labels that a model is trained on, and the number of its
    outputs, which is 1 where the label is a number to be predicted.

    Texts and whole numbers of a data set without a name are classes in ascending order. A split
    whose labels are all missing or all -1 is unlabelled. Raises ValueError where train is, and for
    a label that train does not have.
    """
    values = {name: list(rows["label"]) for name, rows in splits.items()}
    values = {name: labels for name, labels in values.items() if set(labels) not in UNLABELLED}
    train = next(iter(splits), None)
    if train is None or train not in values or not is_train(train, source):
        raise ValueError(f"data: wanted a labelled split {source.splits[0]} for {task}, got none")
    seen = set(values[train])
    if len(seen) < 2 and source.num_labels in (None, 1):
        got = f"got {seen.pop()!r} alone"
        raise ValueError(f"data: {task} {train}: wanted at least two labels, {got}")
    if source.of_numbers:
        relabelled = {
            name: _with_labels(splits[name], [float(label) for label in labels])
            for name, labels in values.items()
        }
        return relabelled, 1
    values = {name: [_whole(label) for label in labels] for name, labels in values.items()}
    classes = _classes(set(values[train]), source)
    labelled = {}
    for name, labels in values.items():
        _check_labels(f"data: {task} {name}", labels, classes, train)
        number = {label: i for i, label in enumerate(classes)}
        labelled[name] = _with_labels(splits[name], [number[label] for label in labels])
    return labelled, len(classes)


def _whole(label):
    """1 for 1.0, and any other label as it is."""
    return int(label) if type(label) is float else label


def _classes(labels: set, source: Source) -> Sequence:
    """The classes in the order of their numbers."""
    if source.num_labels:
        return range(source.num_labels)
    classes = sorted(labels)
    whole = type(classes[0]) is int and classes == list(range(len(classes)))
    return range(len(classes)) if whole else classes


def _check_labels(where: str, labels: list, classes: Sequence, train: str) -> None:
    known, kind = set(classes), type(classes[0])  # Python takes True for 1
    outside = {label for label in labels if type(label) is not kind or label not in known}
    if outside:
        wanted = f"labels in 0..{len(classes) - 1}"
        if not isinstance(classes, range):
            wanted = f"labels as in {train} ({', '.join(map(str, classes[:SHOWN]))})"
        raise ValueError(f"{where}: wanted {wanted}, got {min(outside, key=str)}")


def _with_labels(rows, labels: list):
    """The rows with other labels; without a copy where they are the same already."""
    if list(rows["label"]) == labels and type(rows["label"][0]) is type(labels[0]):
        return rows
    return rows.remove_columns("label").add_column("label", labels)

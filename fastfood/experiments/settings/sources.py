"""What is known of text data sets: where the tasks by name come from, which columns and splits they
have, and which models were trained on them before."""

from typing import NamedTuple

PARTS = ("train", "validation", "test")


class Source(NamedTuple):
    """A text data set: its name on the hub, its columns, and the names of its splits."""

    hub: tuple[str, ...]  # name and configuration
    texts: tuple[str, ...]
    num_labels: int | None  # None: as many classes as the training split has
    splits: tuple[str, ...] = PARTS  # "a+b" are two splits, one after the other
    label: str = "label"
    whole: bool = False  # whether every split has to be there


SOURCES = {
    "glue/mrpc": Source(("nyu-mll/glue", "mrpc"), ("sentence1", "sentence2"), 2),
    "glue/qqp": Source(("nyu-mll/glue", "qqp"), ("question1", "question2"), 2),
    "glue/sst2": Source(("nyu-mll/glue", "sst2"), ("sentence",), 2),
    "glue/mnli": Source(
        ("nyu-mll/glue", "mnli"),
        ("premise", "hypothesis"),
        3,
        ("train", "validation_matched", "test_matched"),
    ),
    "yelp_polarity": Source(("fancyzhx/yelp_polarity",), ("text",), 2),
    "anli": Source(
        ("facebook/anli",),
        ("premise", "hypothesis"),
        3,
        tuple("+".join(f"{part}_r{i}" for i in (1, 2, 3)) for part in ("train", "dev", "test")),
    ),
}

# What cards of models say about the data of tasks: words in a model's name, the tasks, the note.
KNOWN_TRAINING_DATA = (
    (
        r"(?<![a-z0-9])all-(minilm-l\d+|mpnet-base|distilroberta|roberta-large)",
        ("glue/qqp",),
        "trained on Quora's question pairs (the cards of sentence-transformers/all-...)",
    ),
    (
        r"(?<![a-z0-9])all-(minilm-l\d+|mpnet-base|distilroberta|roberta-large)",
        ("glue/mnli",),
        "trained on SNLI and MultiNLI (the cards of sentence-transformers/all-...)",
    ),
    (
        r"(?<![a-z0-9-])t5-(small|base|large|3b|11b)(?![a-z0-9-])",
        ("glue/sst2", "glue/mrpc", "glue/qqp", "glue/mnli"),
        "pre-trained on this task too, among other supervised ones (the cards of google-t5/t5-...)",
    ),
    (r"-mnli(?![a-z0-9])", ("glue/mnli",), "fine-tuned on MultiNLI (by its name)"),
    (r"-finetuned-sst-2", ("glue/sst2",), "fine-tuned on SST-2 (by its name)"),
)

"""What is known of text data sets: where the tasks by name come from, which columns and splits they
have, and which models were trained on them before."""

from typing import NamedTuple

PARTS = ("train", "validation", "test")

# Texts to be completed, which `data/arithmetic.py` makes.
ARITHMETIC = ("arithmetic", "arithmetic/spaced", "arithmetic/carryless", "arithmetic/plus1")


class Source(NamedTuple):
    """A text data set: its name on the hub, its columns, and the names of its splits."""

    hub: tuple[str, ...]  # name and configuration
    texts: tuple[str, ...]
    num_labels: int | None  # 1: the label is a number; None: as many classes as train has
    splits: tuple[str, ...] = PARTS  # "a+b" are two splits, one after the other
    label: str = "label"
    metric: str = "accuracy"  # the default one, a name of METRICS
    whole: bool = False  # whether every split has to be there
    written: bool = False  # whether the label is a completion that a model writes
    answer: str | None = None  # the default pattern of a completion's answer

    @property
    def of_numbers(self) -> bool:
        """Whether the label is a number to be predicted, and no class."""
        return self.num_labels == 1


MATCHED = ("train", "validation_matched", "test_matched")
PAIR = ("sentence1", "sentence2")


def _glue(name: str, texts: tuple[str, ...], *others, **named) -> Source:
    return Source(("nyu-mll/glue", name), texts, *others, **named)


# GLUE's tasks have GLUE's metrics (Wang et al., 2019, Table 1).
SOURCES = {
    "glue/cola": _glue("cola", ("sentence",), 2, metric="matthews"),
    "glue/sst2": _glue("sst2", ("sentence",), 2),
    "glue/mrpc": _glue("mrpc", PAIR, 2, metric="f1"),
    "glue/qqp": _glue("qqp", ("question1", "question2"), 2, metric="f1"),
    "glue/stsb": _glue("stsb", PAIR, 1, metric="pearson_spearman"),
    "glue/mnli": _glue("mnli", ("premise", "hypothesis"), 3, MATCHED),
    "glue/qnli": _glue("qnli", ("question", "sentence"), 2),
    "glue/rte": _glue("rte", PAIR, 2),
    "glue/wnli": _glue("wnli", PAIR, 2),
    "yelp_polarity": Source(("fancyzhx/yelp_polarity",), ("text",), 2),
    "anli": Source(
        ("facebook/anli",),
        ("premise", "hypothesis"),
        3,
        tuple("+".join(f"{part}_r{i}" for i in (1, 2, 3)) for part in ("train", "dev", "test")),
    ),
    "gsm8k": Source(
        ("openai/gsm8k", "main"),
        ("question",),
        None,
        ("train", "test"),
        "answer",
        "exact",
        written=True,
        answer=r"-?\d[\d,]*(?:\.\d+)?",  # the last number, which follows ####
    ),
}


def default_metric(task: str) -> str:
    """The metric of a task by name, accuracy for any other data set."""
    return SOURCES[task].metric if task in SOURCES else "accuracy"


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
        tuple(f"glue/{n}" for n in ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")),
        "pre-trained on this task too, among other supervised ones (the cards of google-t5/t5-...)",
    ),
    (r"-mnli(?![a-z0-9])", ("glue/mnli",), "fine-tuned on MultiNLI (by its name)"),
    (r"-finetuned-sst-2", ("glue/sst2",), "fine-tuned on SST-2 (by its name)"),
    (r"(?<![a-z0-9])stsb(?![a-z0-9])", ("glue/stsb",), "fine-tuned on STS-B (by its name)"),
    (r"-cola(?![a-z0-9])", ("glue/cola",), "fine-tuned on CoLA (by its name)"),
    (r"-qnli(?![a-z0-9])", ("glue/qnli",), "fine-tuned on QNLI (by its name)"),
    (r"-rte(?![a-z0-9])", ("glue/rte",), "fine-tuned on RTE (by its name)"),
)

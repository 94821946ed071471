"""Fixtures and settings for all tests: the devices of this machine, a fixed seed, no downloads and
no compile cache, a small text model and its data; and the table that ends `make fuzz`."""

import atexit
import gc
import os
import re
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several processes share few cores here: a thread that waits must not occupy one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The cache finds a compiled graph by the names of our operators, so it would return the old graph
# after a change of what an operator or its backward does.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# Without this every process compiles a program to find out whether vector instructions work.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Tests import the modules in `fixtures`, and the tests of the programs in `tools` import these.
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("fixtures", "tools")]

# Hypothesis draws new inputs in each run of `make fuzz`, and the same in each run of the suite.
settings.register_profile("fuzz", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("suite", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def everywhere(device, monkeypatch):
    """Runs a test once on each device, with the models and inputs of subspace_models on it."""
    import subspace_models

    monkeypatch.setattr(subspace_models, "DEVICE", device)
    return device


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Exempts the objects of torch and transformers from the walks of the garbage collector,
    because many tests collect garbage."""
    gc.collect()
    gc.freeze()


# The interpreter then ends as it does without the fixture `frozen`.
atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random two-layer BERT without a head, and its WordPiece tokenizer."""
    from text_rows import WORDS
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)  # gives the same weights whichever tests ran before
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """A data folder that holds glue/sst2 as JSON lines, with 40 rows to train on."""
    from text_rows import rows, write_rows

    folder = tmp_path / "data" / "glue" / "sst2"
    for name, (count, start) in {
        "train": (40, 0),
        "validation": (10, 40),
        "test": (12, 50),
    }.items():
        write_rows(folder / f"{name}.jsonl", rows(count, start))
    return tmp_path / "data"


def pytest_terminal_summary(terminalreporter):
    """Ends `make fuzz` with a table: inputs tried, which the modules count by test in TRIED, and
    faults found."""
    if settings.get_current_profile_name() != "fuzz":
        return
    tried = Counter()
    for module in list(sys.modules.values()):
        tried.update(vars(module).get("TRIED", {}))
    failed = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    names = [name for report in failed for name in re.split(r"::(?:test_)?|\[", report.nodeid)]
    rows = [("target", "inputs tried", "faults found")]
    for name, count in sorted(tried.items()):
        rows.append((name, f"{count:,}", names.count(name.removeprefix("test_"))))
    rows += [("in all", f"{tried.total():,}", len(failed))]
    for target, count, faults in rows:
        target = target.removeprefix("test_").replace("_", " ")
        terminalreporter.write_line(f"{target:<36}{count:>14}{faults:>14}")

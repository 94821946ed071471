"""Tests of the settings: how they are read, their defaults, and checks that say what is wrong."""

import json
import math

import pytest

from fastfood.experiments.bound import command
from fastfood.experiments.bound.options import Options
from fastfood.experiments.settings.measurement import Settings, complete, read_settings
from fastfood.experiments.settings.options import kinds
from fastfood.experiments.settings.pretraining import Pretraining
from fastfood.experiments.settings.sources import SOURCES
from fastfood.experiments.settings.task import TaskSettings

TEXT = {"task": "glue/sst2", "model": "somewhere"}
OWN = {"task": "reviews", "text_columns": ("review",), "label_column": "stars", "model": "any"}
OWN |= {"splits": ("train", "test")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "glue/ax"}, "task: wanted one of digits, .*, got 'glue/ax'"),
        ({"task": "glue/sst2"}, "model: wanted a model's folder or hub name .*, got None"),
        ({"data": "/"}, "data: wanted nothing, because the task digits"),
        ({**TEXT, "data": "/no/such/folder"}, "data: wanted an existing folder, got"),
        ({"methods": ("adam",)}, "method: wanted some of did, said, .*, got 'adam'"),
        ({"methods": ()}, "method: wanted at least one"),
        ({"dims": ()}, "dims: wanted at least one"),
        ({"dims": (10, 0)}, "dims: wanted whole numbers of at least 1, got 0"),
        ({"lrs": (0.1, -1.0)}, "lrs: wanted finite rates above 0, got -1.0"),
        ({"full_lrs": (math.nan,)}, "full_lrs: wanted finite rates above 0, got nan"),
        ({"lambda_lr": math.inf}, "lambda_lr: wanted a finite rate above 0, got inf"),
        ({"normalization": "batch"}, "normalization: wanted global or tensor, got 'batch'"),
        ({"seeds": 0}, "seeds: wanted at least 1, got 0"),
        ({"max_steps": 0}, "max_steps: wanted at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: wanted at least 1, got -1"),
        ({"max_length": 1}, "max_length: wanted at least 4 tokens, at most 1,000,000, got 1"),
        ({"warmup": 1.5}, "warmup: wanted a share"),
        ({"device": "tpu"}, "device: wanted auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"workers": 0}, "workers: wanted at least 1, at most 1,000, got 0"),
        ({"splits": ("train", "test")}, "splits: wanted nothing, because the task digits has"),
        ({**OWN, "splits": None}, "task: wanted one of .* or text_columns, label_column and"),
        ({**OWN, "text_columns": ("a", "b", "c")}, "text_columns: wanted one or two columns"),
        ({**OWN, "splits": tuple("abcd")}, "splits: wanted one, two or three names"),
        ({**OWN, "metric": "bleu"}, "metric: wanted accuracy, .* or reward, got 'bleu"),
        ({"metric": "pearson"}, "metric: wanted accuracy, f1 or matthews for the task digits, got"),
        (
            {**TEXT, "task": "glue/stsb", "metric": "accuracy"},
            "metric: wanted pearson, spearman or pearson_spearman for the task glue/stsb, got",
        ),
        ({"search": "random"}, "search: wanted grid or bisect, got 'random'"),
        ({"bracket": (100, 10)}, "bracket: wanted two whole numbers, .*, got \\(100, 10\\)"),
        ({"precision": 1.0}, "precision: wanted a finite ratio above 1, got 1.0"),
        ({"sizes": (0,)}, "sizes: wanted whole numbers of at least 1, got 0"),
        ({"head": "none"}, "head: wanted inside or outside, got 'none'"),
        ({"lr_factors": ()}, "lr_factors: wanted at least one rate"),
        ({"eval_rows": 0}, "eval_rows: wanted at least 1, got 0"),
        ({"gap_rows": -1}, "gap_rows: wanted at least 0, got -1"),
        ({"gpu_share": 0.0}, "gpu_share: wanted a share in \\(0, 1\\], got 0.0"),
        ({"heartbeat": 0}, "heartbeat: wanted at least 1 second, at most a day, got 0"),
        ({"storage": "trials.db"}, "storage: wanted a database URL"),
        ({"storage": "://"}, "storage: wanted a database URL"),
        ({**TEXT, "data": ""}, "data: wanted an existing folder, got ''"),
        ({**TEXT, "data": 300 * "x"}, "data: wanted an existing folder, got 'xxx"),
        ({"device": "7"}, "device: wanted auto, cpu, cuda or cuda:N, got '7'"),
        ({"device": "cuda:٣"}, "device: wanted auto, cpu, cuda or cuda:N, got"),
        ({"precision": math.inf}, "precision: wanted a finite ratio above 1, got inf"),
        ({"seeds": 10**9}, "seeds: wanted at most 100,000 trials in all, got"),
        ({"workers": 10**9}, "workers: wanted at least 1, at most 1,000, got"),
        ({"heartbeat": 10**30}, "heartbeat: wanted at least 1 second, at most a day, got"),
        ({"max_length": 2**62}, "max_length: wanted at least 4 tokens, at most 1,000,000, got"),
        ({"out": " "}, "out: wanted a folder, got ' '"),
        ({"dtype": "bfloat16"}, "dtype: wanted float32 for the task digits, got 'bfloat16'"),
    ],
)
def test_bad_settings_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match="^" + message):
        complete(Settings(**given))


@pytest.mark.parametrize(
    ("cls", "given", "message"),
    [
        (Pretraining, {}, "out: wanted a value, got None"),
        (Pretraining, {"out": "a", "learning_rate": -1}, "learning_rate: wanted a finite rate"),
        (
            Pretraining,
            {"out": "a", "heads": 3, "hidden_size": 16},
            "hidden_size: wanted a multiple",
        ),
        (Pretraining, {"out": "a", "data": "b"}, "data: wanted nothing, because the task digits"),
        (Options, {"levels": (2, 257)}, r"levels: wanted numbers in 1\.\.256, got 257"),
        (Options, {"delta": 1.0}, r"delta: wanted a share in \(0, 1\), got 1.0"),
        (Options, {"head_seed": "x"}, "head_seed: wanted a whole number, got 'x'"),
    ],
)
def test_every_model_of_options_refuses_by_name_in_one_line(cls, given, message):
    with pytest.raises(ValueError, match="^" + message) as caught:
        cls(**given)
    assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed_and_copies_are_checked():
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.seeds = 3
    assert settings.replaced(seeds=3).seeds == 3 and settings.seeds == 2
    with pytest.raises(ValueError, match="^seeds: wanted at least 1, got 0"):
        settings.replaced(seeds=0)
    assert len({settings, Settings(), settings.replaced(seeds=3)}) == 2  # tasks are cached by them


def test_settings_come_back_from_json():
    for given in ({}, OWN, {**TEXT, "search": "bisect", "dims": (3, 5)}):
        settings = complete(Settings(**given))
        assert read_settings(json.loads(json.dumps(settings.model_dump()))) == settings


def test_measuring_and_pretraining_share_the_settings_of_data_and_model():
    shared = {name: Settings.model_fields[name].annotation for name in TaskSettings.model_fields}
    assert shared == {name: Pretraining.model_fields[name].annotation for name in shared}
    assert tuple(shared) == command.TASK[: len(shared)]


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^out: wanted a folder, got .*file is a file"):
        complete(Settings(out=str(tmp_path / "file" / "study")))
    with pytest.raises(ValueError, match="^out: wanted a folder, got .*File name too long"):
        complete(Settings(out=str(tmp_path / (300 * "x"))))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="^out: wanted a folder, got .*a link to nothing"):
        complete(Settings(out=str(tmp_path / "link")))
    complete(Settings(out=str(tmp_path / "a" / "b")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]  # nothing was made


def test_defaults_come_from_the_task():
    digits, text = complete(Settings()), complete(Settings(**TEXT, dims=(300, 20, 300)))
    assert len(digits.dims) >= 6 and digits.out == "d90-digits" and digits.seeds == 2
    assert text.dims == (20, 300) and text.out == "d90-glue-sst2" and text.batch_size == 32


def test_every_task_has_its_metric():
    objectives = {name: "sft" if source.written else "classify" for name, source in SOURCES.items()}
    by_name = {
        name: complete(Settings(task=name, objective=objective, model="any")).metric
        for name, objective in objectives.items()
    }
    assert by_name == {
        "glue/cola": "matthews",
        "glue/sst2": "accuracy",
        "glue/mrpc": "f1",
        "glue/qqp": "f1",
        "glue/stsb": "pearson_spearman",
        "glue/mnli": "accuracy",
        "glue/qnli": "accuracy",
        "glue/rte": "accuracy",
        "glue/wnli": "accuracy",
        "yelp_polarity": "accuracy",
        "anli": "accuracy",
        "gsm8k": "exact",
    }
    assert complete(Settings()).metric == complete(Settings(**OWN)).metric == "accuracy"
    assert complete(Settings(**OWN, metric="spearman")).metric == "spearman"


def test_settings_come_from_texts_and_from_values_alike():
    texts = {"dims": "10,300", "lrs": "0.1, 0.5", "methods": "did,lora", "seeds": "3", "bf16": True}
    values = {"dims": [10, 300], "lrs": [0.1, 0.5], "methods": ["did", "lora"], "seeds": 3}
    assert read_settings(texts) == read_settings(values | {"bf16": True, "out": None})
    assert read_settings(texts).dims == (10, 300) and read_settings(texts).seeds == 3
    assert read_settings({"lambda_lr": 1}).lambda_lr == 1.0


def test_dims_are_spaced_evenly_on_a_log_scale():
    dims = read_settings({"dims": "10:10000:100"}).dims
    assert dims[0] == 10 and dims[-1] == 10000 and dims == tuple(sorted(set(dims)))
    assert 95 <= len(dims) <= 100  # neighbours below 14 round to the same number
    assert read_settings({"dims": "10:1000:3"}).dims == (10, 100, 1000)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 3}, "dim: wanted a setting, one of task, .*, got 3"),
        ({"dims": "10,x"}, "dims: wanted a whole number, got 'x'"),
        ({"dims": "10:5:3"}, "dims: wanted LOW:HIGH:COUNT, LOW < HIGH, got '10:5:3'"),
        ({"dims": "1:100000000:100000000"}, "dims: wanted LOW:HIGH:COUNT"),
        ({"dims": 7}, "dims: wanted a list or values between commas, got 7"),
        ({"seeds": 2.5}, "seeds: wanted a whole number, got 2.5"),
        ({"seeds": True}, "seeds: wanted a whole number, got True"),
        ({"lambda_lr": "fast"}, "lambda_lr: wanted a number, got 'fast'"),
        ({"prune": "yes"}, "prune: wanted true or false, got 'yes'"),
        ({"task": 3}, "task: wanted a text, got 3"),
        ({"task": "a\0b"}, "task: wanted a text without control characters, got 'a"),
        ({"task": "\udcff"}, "task: wanted a text without control characters, got"),
        ({"task": [5000 * "x"]}, r"task: wanted a text, got .{300}\.\.\.$"),
        ({"lambda_lr": 10**400}, "lambda_lr: wanted a number, got 1000"),
        ({"seeds": 2**63}, "seeds: wanted a number of 64 bits, got 9223"),
        ({"dims": "1:" + 400 * "9" + ":5"}, "dims: wanted a number of 64 bits, got '?9999"),
    ],
)
def test_unreadable_settings_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match="^" + message):
        read_settings(given)


@pytest.mark.parametrize("cls", [Settings, Pretraining, Options])
def test_every_option_is_described(cls):
    assert set(kinds(cls)) == set(cls.model_fields)
    assert all(field.description.endswith((".", "]")) for field in cls.model_fields.values())


def test_kinds_are_those_of_entries():
    assert kinds(Settings)["dims"] == (int, True) and kinds(Settings)["storage"] == (str, False)
    assert complete(Settings(**OWN)).text_columns == ("review",)

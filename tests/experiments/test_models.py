"""Tests of the models of a study: base models, heads, what each method trains and how many numbers
that is."""

import pytest
import torch
import transformers
from trials import PEFT, text_settings, trial_of

from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.training.models import (
    build_base,
    build_model,
    head_of,
    parameter_groups,
    trained_counts,
    trained_numbers,
)
from fastfood.experiments.trials.facts import inspect

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
SMALL |= {"intermediate_size": 24}
WIDE = {"d_model": 16, "vocab_size": 40}
FAMILIES = {
    "Bert": (SMALL, {"classifier"}),
    "Roberta": (SMALL, {"classifier"}),
    "XLMRoberta": (SMALL, {"classifier"}),
    "Electra": (SMALL | {"embedding_size": 8}, {"classifier"}),
    "Albert": (SMALL | {"embedding_size": 8}, {"classifier"}),
    "XLNet": (
        WIDE | {"n_layer": 2, "n_head": 2, "d_inner": 24},
        {"sequence_summary", "logits_proj"},
    ),
    "Bart": (
        WIDE
        | {f"{side}_layers": 1 for side in ("encoder", "decoder")}
        | {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
        | {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
        | {"max_position_embeddings": 20},
        {"classification_head"},
    ),
    "T5": (
        WIDE
        | {"d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        {"classification_head"},
    ),
    "GPT2": (  # its linear layers are transformers' Conv1D
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "vocab_size": 40}
        | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None},
        {"score"},
    ),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return complete(Settings(out=str(tmp_path_factory.mktemp("digits")), device="cpu"))


def _numel(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("before", [None, "regression", "single_label_classification"])
def test_the_head_is_that_of_the_task_whatever_the_checkpoint_was_for(
    model_folder, data, tmp_path, before
):
    base = build_base(text_settings(model_folder, data), 2, 0)
    base.config.problem_type = before
    base.save_pretrained(tmp_path)
    settings = text_settings(tmp_path, data)
    inputs = {"input_ids": torch.tensor([[2, 4, 3], [2, 5, 3]])}
    for outputs, labels in ((1, torch.tensor([0.5, -1.0])), (3, torch.tensor([2, 0]))):
        model = build_base(settings, outputs, 0).eval()
        found = model(**inputs, labels=labels)
        assert found.logits.shape == (2, outputs)
        loss = torch.nn.functional.cross_entropy if outputs > 1 else torch.nn.functional.mse_loss
        assert torch.equal(found.loss, loss(found.logits.squeeze(1), labels))


def test_the_base_model_depends_on_the_seed_alone(model_folder, data, digits):
    for settings in (text_settings(model_folder, data), digits):
        first, again, other = (build_base(settings, 2, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_digits_model_has_the_size_that_it_should(digits):
    base = build_base(digits, 10, seed=0)
    assert _numel(base.parameters()) == 102_218
    settings = digits.replaced(methods=("lora",), sizes=(4,))
    # two layers: four of attention, 64 to 64, and two of an MLP, 64 to 256; 650 in the head
    assert trained_counts(settings, 10, base) == {"lora": {"4": 4 * 2 * (4 * 128 + 2 * 320) + 650}}


def test_digits_take_a_pretrained_image_model_and_a_new_head(digits, tmp_path):
    config = build_base(digits, 10, seed=5).config
    pretrained = transformers.ViTForMaskedImageModeling(config)
    pretrained.save_pretrained(tmp_path)
    settings = digits.replaced(model=str(tmp_path))
    first, other = (build_base(settings, 10, seed) for seed in (0, 1))
    body = pretrained.vit.state_dict()
    for name, tensor in first.vit.state_dict().items():
        assert torch.equal(tensor, body[name])
        assert torch.equal(tensor, other.vit.state_dict()[name])
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_the_revision_is_asked_for(model_folder, data, monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["revision"])
        raise OSError("no such revision")

    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    settings = text_settings(model_folder, data)
    with pytest.raises(ValueError, match=r"^model: wanted .*, got '\S+' \(no such revision\)"):
        build_base(settings, 2, seed=0)
    with pytest.raises(ValueError, match="at revision 'step1'"):
        build_base(settings.replaced(revision="step1"), 2, seed=0)
    assert asked == ["main", "step1"]


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_head_is_trained_beside_every_adapter(family, digits, monkeypatch):
    """Only adapters and the head train, as many numbers as are counted, no adapter is inside the
    head, and both get gradients."""
    options, head = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(num_labels=3, **options)
    kind = getattr(transformers, f"{family}ForSequenceClassification")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, config.eos_token_id or 1]])}
    for method in PEFT:
        torch.manual_seed(0)
        base = kind(config).eval()
        monkeypatch.setattr(
            "fastfood.experiments.training.models.build_base", lambda *given, base=base: base
        )
        assert set(head_of(base)) == head
        in_head = [p for name in head for p in getattr(base, name).parameters()]
        in_head_before = {id(p) for p in in_head}
        sizes = (PEFT[method] or 1,)
        counted = trained_counts(digits.replaced(methods=(method,), sizes=sizes), 3, base)
        model = build_model(None, trial_of(method, d=60), 3)
        trained = [p for p in model.parameters() if p.requires_grad]
        adapter = [p for p in trained if id(p) not in in_head_before]
        assert len(trained) - len(adapter) == len(in_head) and adapter
        assert trained_numbers(model, trial_of(method)) == (_numel(trained), _numel(in_head))
        if method == "unilora":
            assert _numel(adapter) == 60 and not counted
        else:
            assert counted == {method: {str(sizes[0]): _numel(trained)}}
        model(**inputs, labels=torch.tensor([1])).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        assert any(p.grad.any() for p in adapter) and any(p.grad.any() for p in in_head)


def test_a_model_without_a_head_is_refused():
    body = transformers.BertModel(transformers.BertConfig(**SMALL))
    with pytest.raises(ValueError, match="^model: wanted a pre-trained model with a head on top"):
        head_of(body)


@pytest.mark.parametrize("head", ["inside", "outside"])
def test_counts_are_those_of_the_built_models(model_folder, data, head):
    methods, sizes = tuple(PEFT), (1, 13)
    settings = text_settings(model_folder, data, methods=methods, sizes=sizes, head=head)
    counts = trained_counts(settings, 2)
    # 13 layers of 16 or 32 numbers a side: eight of attention, four of both MLPs, one pooler
    sides, outputs, in_head = 9 * 32 + 4 * 48, 9 * 16 + 2 * 48, 34 if head == "inside" else 0
    assert counts == {
        "lora": {"1": sides + in_head, "13": 13 * sides + in_head},
        "vera": {"1": 13 + outputs + in_head, "13": 13 * 13 + outputs + in_head},
        "tinylora": {"1": 1 + in_head, "13": 13 + in_head},
    }
    for method, by_size in counts.items():
        for size, count in by_size.items():
            trial = trial_of(method, d=count, size=int(size), head=head)
            trained, head_trained = trained_numbers(build_model(settings, trial, 2), trial)
            assert head_trained == 34 and trained - (34 if head == "outside" else 0) == count
    base = build_base(settings, 2, seed=0)
    assert trained_counts(settings, 2, base) == counts
    assert trained_counts(text_settings(model_folder, data), 2) == {}


def test_unilora_counts_the_head_or_not(model_folder, data):
    settings, most = text_settings(model_folder, data), 4 * 480
    for head, d, length in (("inside", 35, 1), ("inside", 100, 66), ("outside", most, most)):
        model = build_model(settings, trial_of("unilora", d=d, head=head), 2)
        assert trained_numbers(model, trial_of("unilora")) == (length + 34, 34)
    for head, d in (("inside", 34), ("outside", 0), ("outside", most + 1)):
        with pytest.raises(ValueError, match=rf"^d: wanted .*, got {d}$"):
            build_model(settings, trial_of("unilora", d=d, head=head), 2)
    with pytest.raises(ValueError, match="the head's 34 numbers count in it"):
        build_model(settings, trial_of("unilora", d=34, head="inside"), 2)


def test_a_model_is_found_to_have_each_method_at_some_d(tmp_path):
    methods = ("did", "said", "unilora")
    given = {"out": str(tmp_path), "device": "cpu", "methods": methods, "max_steps": 1}
    settings = complete(Settings(**given, dims=(1, 4, 5, 651, 100_000)))
    found = inspect(settings)
    base = build_base(settings, 10, seed=0)
    layers = [m for m in base.modules() if isinstance(m, torch.nn.Linear)][:-1]
    sides = sum(layer.in_features + layer.out_features for layer in layers)
    assert found.m == 4 and found.unilora == (651, 650 + 4 * sides)
    for method, dims in (("unilora", (1, 650)), ("said", (1, 4))):
        settings = complete(Settings(**given | {"methods": ("did", method)}, dims=dims))
        with pytest.raises(ValueError, match=f"^dims: {method.upper()} with d = 1: d: wanted "):
            inspect(settings)


@pytest.mark.parametrize("method", PEFT)
def test_random_matrices_follow_the_seed(model_folder, data, method):
    def state(seed):
        model = build_model(text_settings(model_folder, data), trial_of(method, 60, seed), 2)
        # buffers too: those that are not in a checkpoint are the random matrices themselves
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        return {n: t for n, t in tensors.items() if f"{method}_" in n or method in ("vera",)}

    first, again, other = state(0), state(0), state(1)
    assert first and all(torch.equal(first[name], again[name]) for name in first)
    random = {
        "lora": "lora_A",
        "vera": "vera_A",
        "tinylora": "tinylora_P",
        "unilora": "unilora_indices_A",
    }[method]
    names = [name for name in first if random in name]
    assert names
    drawn = [first[name].flatten().tolist() for name in names]
    assert not any(other[name].flatten().tolist() in drawn for name in names)


def test_an_unknown_method_is_refused(model_folder, data):
    with pytest.raises(ValueError, match="^method: wanted full, did, .*got 'adapters'"):
        build_model(text_settings(model_folder, data), trial_of("adapters"), 2)


@pytest.mark.parametrize("method", ["full", "did", "said", *PEFT])
def test_theta_lambda_and_all_else_have_their_rates(model_folder, data, method):
    trial = trial_of(method, d=60)
    model = build_model(text_settings(model_folder, data), trial, 2)
    groups = parameter_groups(model, trial)
    assert [group["lr"] for group in groups] == ([0.1, 0.02] if method == "said" else [0.1])
    sizes = [_numel(group["params"]) for group in groups]
    assert sum(sizes) == trained_numbers(model, trial)[0]
    if method in ("did", "said"):
        assert sum(sizes) == 60 and groups[0]["params"] == [model.theta]
    if method == "full":
        assert sizes == [_numel(model.parameters())]

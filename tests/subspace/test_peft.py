"""SAID and DID as methods of PEFT: what trains, adapters, merging, generation, refusals."""

import copy

import pytest
import subspace_models
import torch
from peft_models import layer, logits, said, tuned
from subspace_models import SMALL, bert, expected, gpt2, ids, loss_of, mlp, move, t5, wrap

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("everywhere")

import fastfood  # noqa: E402
from fastfood.peft import DidConfig, SaidConfig  # noqa: E402
from fastfood.streamed import StreamedWeight  # noqa: E402


def bert_for(task):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, num_labels=2)
    return getattr(transformers, f"BertFor{task}")(config).to(subspace_models.DEVICE)


# What trains


@pytest.mark.parametrize(
    "task_type, build, head",
    [
        ("SEQ_CLS", bert, "classifier.weight"),
        ("TOKEN_CLS", lambda: bert_for("TokenClassification"), "classifier.weight"),
        ("QUESTION_ANS", lambda: bert_for("QuestionAnswering"), "qa_outputs.weight"),
        ("CAUSAL_LM", gpt2, "lm_head.weight"),
        ("SEQ_2_SEQ_LM", t5, "lm_head.weight"),
        ("FEATURE_EXTRACTION", lambda: bert().bert, "pooler.dense.weight"),
        (None, mlp, "out.weight"),
    ],
)
@pytest.mark.parametrize("config", [SaidConfig, DidConfig])
def test_exactly_d_numbers_train_the_head_too(config, task_type, build, head, capsys):
    before = build().get_parameter(head)
    model = peft.get_peft_model(build(), config(d=30, task_type=task_type))
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 30 ||")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    prefix = f"base_model.{config.method}_layer"
    lambdas = [f"{prefix}.lambda_.default"] if config is SaidConfig else []
    assert names == [f"{prefix}.theta.default", *lambdas]
    assert not any(isinstance(m, peft.utils.ModulesToSaveWrapper) for m in model.modules())
    move(layer(model).subspace_model)
    assert not torch.equal(model.merge_and_unload().get_parameter(head), before)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("config", [SaidConfig, DidConfig])
def test_gradients(config, weights):
    settings = config(d=30, seed=5, normalization="tensor", task_type="SEQ_CLS", weights=weights)
    model = peft.get_peft_model(bert(), settings)
    subspace_model = move(layer(model).subspace_model)
    value, theta_grad, lambda_grad = expected(subspace_model, bert())
    loss = loss_of(model)
    loss.backward()
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-12)
    theta, lambda_ = layer(model).theta["default"], subspace_model.lambda_
    torch.testing.assert_close(theta.grad, theta_grad, rtol=1e-7, atol=1e-9)
    if lambda_ is not None:
        assert layer(model).lambda_["default"] is lambda_
        torch.testing.assert_close(lambda_.grad, lambda_grad, rtol=1e-7, atol=1e-9)

    plain = move(wrap(bert(), method=config.method, normalization="tensor"))
    loss_of(plain).backward()
    if weights == "resident":
        assert torch.equal(plain.theta.grad, theta.grad)


def test_parameter_groups_find_theta_and_lambda():
    groups = fastfood.parameter_groups(tuned(), lr=0.4)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert [group["lr"] for group in groups] == [0.4, 0.02]


def test_sixteen_bit_weights_and_conversions():
    model = peft.get_peft_model(bert().bfloat16(), said(), autocast_adapter_dtype=False)
    model.add_adapter("other", said(), autocast_adapter_dtype=False)
    assert {p.dtype for p in layer(model).parameters()} == {torch.float32}
    move(layer(model).subspace_model)
    loss_of(model).backward()
    assert layer(model).theta["default"].grad.dtype == torch.float32
    kept = layer(model).theta["default"].detach().clone()
    model.half().float()
    assert torch.equal(layer(model).theta["default"], kept)
    assert model.dtype == torch.float32
    assert layer(model).theta["default"] is layer(model).subspace_model.theta
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert logits(model).dtype == torch.float64
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as moves to some devices do
    try:
        model.float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert layer(model).theta["default"] is layer(model).subspace_model.theta
    assert logits(model).dtype == torch.float32


# Adapters


def test_two_adapters():
    model = tuned()
    first = logits(model)
    second_config = said(d=50, groups="tensor")
    model.add_adapter("other", second_config)
    assert torch.equal(logits(model), first)
    assert not layer(model).theta["other"].requires_grad
    model.set_adapter("other")
    move(layer(model).subspace_model, seed=1)
    alone = peft.get_peft_model(bert().float().eval(), second_config)
    move(layer(alone).subspace_model, seed=1)
    assert torch.equal(logits(model), logits(alone))
    assert model.get_nb_trainable_parameters()[0] == 50
    loss_of(model).backward()
    assert layer(model).theta["default"].grad is None
    assert layer(model).theta["other"].grad.norm() > 0
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    status = model.get_model_status()
    assert status.active_adapters == ["default"] and status.enabled
    assert status.available_adapters == ["default", "other"]
    assert status.requires_grad == {"default": True, "other": False}
    assert status.trainable_params == 30

    model.set_adapter("other")
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("other")
    assert torch.equal(logits(model), first)
    assert list(layer(model).subspace_model.adapters) == ["default"]
    model.delete_adapter("default")
    assert model.active_adapters == [] and not model.peft_config and layer(model) is None
    assert torch.equal(model.base_model(input_ids=ids()).logits, logits(bert().float().eval()))
    model.add_adapter("new", said())
    model.set_adapter("new")
    assert torch.equal(logits(model), logits(bert().float().eval()))


def test_disabling():
    model = tuned()
    adapted, plain = logits(model), logits(bert().float().eval())
    assert not torch.equal(adapted, plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
        with model.disable_adapter():
            assert torch.equal(logits(model), plain)
        assert not model.get_model_status().enabled
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), adapted)
    model.base_model.set_adapter([])
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_merging_and_unloading(weights):
    plain = bert().float().eval()
    model = tuned(said(weights=weights))
    model.add_adapter("other", said())
    adapted = logits(model)
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert type(merged) is type(plain) and not hasattr(merged, "peft_config")
    assert torch.equal(logits(merged), adapted)
    assert not any(module._forward_pre_hooks for module in merged.modules())
    unmoved = copy.deepcopy(model).merge_and_unload(adapter_names=["other"])
    assert torch.equal(logits(unmoved), logits(plain))
    restored = model.unload().state_dict()
    assert all(torch.equal(restored[name], value) for name, value in plain.state_dict().items())

    broken = tuned(said(weights=weights))
    with torch.no_grad():
        layer(broken).lambda_["default"][1] = float("inf")
    with pytest.raises(ValueError, match="default makes bert.encoder.*not finite"):
        broken.merge_and_unload(safe_merge=True)
    assert layer(broken).merged_adapters == []


def test_merging_in_place():
    model = tuned()
    adapted = logits(tuned())
    model.merge_adapter()
    merged = bert().float().eval()
    merged.load_state_dict(model.get_base_model().state_dict())
    assert torch.equal(logits(merged), adapted)
    assert torch.equal(logits(model), adapted)
    assert model.get_model_status().merged_adapters == ["default"]
    with pytest.raises(ValueError, match="default.* merged"):
        model.delete_adapter("default")
    model.add_adapter("other", said())
    with pytest.raises(ValueError, match="adapter_names: wanted a single one"):
        model.merge_adapter(["other"])
    with pytest.warns(UserWarning, match="unmerged"):
        model.set_adapter("other")
    assert torch.equal(logits(model), logits(bert().float().eval()))
    model.set_adapter("default")
    model.merge_adapter()
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model), logits(bert().float().eval()))
    assert model.get_model_status().merged_adapters == []
    streamed = tuned(said(weights="streamed"))
    assert torch.equal(logits(streamed), adapted)
    assert isinstance(layer(streamed).subspace_model.classifier.weight, StreamedWeight)
    with pytest.raises(ValueError, match="weights: wanted 'resident'"):
        streamed.merge_adapter()


def test_merging_an_adapter_that_is_not_active():
    model = tuned()
    adapted, plain = logits(model), logits(bert().float().eval())
    model.add_adapter("other", said())  # theta = 0
    model.set_adapter("other")
    model.merge_adapter(["default"])
    assert torch.equal(logits(model), adapted) and model.active_adapters == ["other"]
    model.unmerge_adapter()
    assert torch.equal(logits(model), plain) and model.active_adapters == ["other"]


# Refusals


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"target_modules": ["query"]}, TypeError, "target_modules is no setting of SAID and DID"),
        ({"modules_to_save": ["classifier"]}, TypeError, "modules_to_save is no setting"),
        ({"d": None}, TypeError, "d: wanted an integer, got None"),
        ({"normalization": "layer"}, ValueError, "normalization: wanted 'global' or 'tensor'"),
        ({"seed": -1}, ValueError, "seed: wanted at least 0"),
        ({"base_hash": 5}, TypeError, "base_hash: wanted a string or None, got a int"),
        ({"rank": 8}, TypeError, "unexpected keyword argument 'rank'"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        SaidConfig(**{"d": 30} | settings)


def test_what_cannot_be_had():
    base = bert().float()
    config = said()
    config.modules_to_save = ["classifier"]
    with pytest.raises(TypeError, match="modules_to_save is no setting"):
        peft.get_peft_model(base, config)
    for d in (4, 10**6):
        with pytest.raises(ValueError, match=f"got {d}"):
            peft.get_peft_model(base, said(d=d))
    frozen = bert().requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that require gradients"):
        peft.get_peft_model(frozen, said())
    assert all(p.requires_grad for p in base.parameters()) and not hasattr(base, "peft_config")

    model = peft.get_peft_model(base, said())
    with pytest.raises(ValueError, match="has a PEFT adapter already"):
        peft.get_peft_model(base, said(d=20))
    assert model.peft_config["default"].d == 30
    model.add_adapter("other", said())
    with pytest.raises(ValueError, match="adapter_names: wanted a single one"):
        model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="a batch goes through one adapter"):
        model(input_ids=ids(), adapter_names=["default"] * len(ids()))
    with pytest.raises(ValueError, match="shared state"):
        peft.inject_adapter_in_model(said(), bert())


# With the rest of Hugging Face


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_generate(weights):
    model = peft.get_peft_model(gpt2().eval(), said(task_type="CAUSAL_LM", weights=weights))
    prompt = {"input_ids": ids(1, 3), "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(**prompt)
    layer(model).theta["default"].data.normal_()
    adapted = model.generate(**prompt)
    assert not torch.equal(adapted, plain)
    with model.disable_adapter():
        assert torch.equal(model.generate(**prompt), plain)
    assert torch.equal(model.merge_and_unload().generate(**prompt), adapted)


def test_gradient_checkpointing():
    model = tuned().train()
    loss_of(model).backward()
    theta = layer(model).theta["default"]
    wanted, theta.grad = theta.grad, None
    for use_reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        loss_of(model).backward()
        torch.testing.assert_close(theta.grad, wanted)
        theta.grad = None

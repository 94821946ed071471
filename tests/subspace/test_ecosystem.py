"""A SubspaceModel where Hugging Face's libraries expect a model of their own: Trainer, Accelerate,
pipelines, generate and PEFT, against the merged model or a run by hand."""

import copy

import pytest
import subspace_models
import torch
from subspace_models import bert, gpt2, ids, loss_of, mlp, move, wrap
from torch import nn

from fastfood.subspace import SubspaceModel

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
accelerate = pytest.importorskip("accelerate")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("everywhere")

DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}


def classifier(**changes):
    return bert(**changes).float()


def rows(n):
    ids = torch.randint(3, 41, (n, 7), generator=torch.Generator().manual_seed(0))
    labels = (ids[:, 0] > 20).long()
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def trainer(model, folder, **changes):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "use_cpu": subspace_models.DEVICE.type == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = transformers.TrainingArguments(str(folder), **settings | changes)
    return transformers.Trainer(model, arguments, train_dataset=rows(64), eval_dataset=rows(16))


def tokenizer():
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {chr(97 + i): 3 + i for i in range(26)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    core.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.mark.filterwarnings("ignore")
def test_checkpointed_layers_train_bit_by_bit_the_same(tmp_path):
    """With dropout, accumulation and bf16 autocast; layers are really computed twice."""
    calls, results = [], []
    for checkpointing in (False, True):
        model = wrap(classifier(**DROPOUT), d=40)
        run = trainer(
            model,
            tmp_path,
            max_steps=3,
            gradient_accumulation_steps=2,
            bf16=True,
            gradient_checkpointing=checkpointing,
        )
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        model.bert.encoder.layer[0].attention.register_forward_pre_hook(count)
        run.train()
        results.append((model.theta.detach(), model.lambda_.detach()))
    assert calls == [6, 12]
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
    assert results[0][0].norm() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_the_best_model_comes_back(tmp_path):
    model = wrap(classifier(), d=40)
    run = trainer(
        model,
        tmp_path,
        learning_rate=1.0,  # far too high, so that the last model is not the best
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1]
    assert run.evaluate()["eval_loss"] == min(losses)
    predictions = run.predict(rows(16)).predictions
    run.save_model(str(tmp_path / "saved"))

    saved = tmp_path / "saved" / "model.safetensors"
    other = wrap(classifier(), d=40)
    safetensors_torch = pytest.importorskip("safetensors.torch")
    other.load_state_dict(safetensors_torch.load_file(saved))
    merged = other.eval().merge_and_unload()
    with torch.no_grad():
        words = torch.tensor(rows(16)["input_ids"], device=subspace_models.DEVICE)
        logits = merged(words).logits.cpu()
    torch.testing.assert_close(torch.from_numpy(predictions), logits)


@pytest.fixture
def fresh_accelerate():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(fresh_accelerate, precision, tmp_path):
    """Its plain loop trains as one by hand, and goes on from a saved state, bit by bit."""

    def prepared():
        accelerator = accelerate.Accelerator(
            cpu=subspace_models.DEVICE.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=2,
        )
        model = wrap(classifier(), d=40)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        return accelerator, *accelerator.prepare(model, optimizer)

    def steps(accelerator, model, optimizer):
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

    accelerator, model, optimizer = prepared()
    steps(accelerator, model, optimizer)
    by_hand = wrap(classifier(), d=40)
    plain = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    for _ in range(2):
        for _ in range(2):
            kind = subspace_models.DEVICE.type
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(by_hand)
            (loss.float() / 2).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
        plain.step()
        plain.zero_grad()
    assert torch.equal(model.theta, by_hand.theta) and by_hand.theta.norm() > 0.1
    assert torch.equal(model.lambda_, by_hand.lambda_)

    accelerator.save_state(str(tmp_path))
    steps(accelerator, model, optimizer)
    accelerator, resumed, optimizer = prepared()
    accelerator.load_state(str(tmp_path))
    assert torch.equal(resumed.theta, by_hand.theta)
    steps(accelerator, resumed, optimizer)
    assert torch.equal(resumed.theta, model.theta) and torch.equal(resumed.lambda_, model.lambda_)

    idiom = {"save_function": accelerator.save, "state_dict": accelerator.get_state_dict(model)}
    unwrapped = accelerator.unwrap_model(model)
    assert unwrapped.save_pretrained(tmp_path / "none", is_main_process=False, **idiom) is None
    assert not (tmp_path / "none").exists()
    path = unwrapped.save_pretrained(tmp_path, is_main_process=True, **idiom)
    loaded = SubspaceModel.from_pretrained(classifier(), path)
    assert torch.equal(loaded.theta, model.theta)


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2},
        {"use_cache": False},
    ],
)
def test_generate_as_the_merged_model(how):
    model = move(wrap(gpt2().eval()))
    merged = copy.deepcopy(model).merge_and_unload()
    results = []
    for each in (model, merged, gpt2().eval()):
        torch.manual_seed(3)
        results.append(each.generate(ids(2, 3), max_new_tokens=8, **how))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "build", "how"),
    [
        ("text-classification", classifier, {"top_k": None}),
        ("text-generation", gpt2, {"max_new_tokens": 6, "do_sample": False}),
    ],
)
def test_pipelines_as_the_merged_model(task, build, how):
    def answers(model):
        place = {"tokenizer": tokenizer(), "device": subspace_models.DEVICE}
        pipeline = transformers.pipeline(task, model=model.eval(), **place)
        return pipeline(["abcde", "zxy"], **how)

    model = move(wrap(build()))
    got = answers(model)
    assert got == answers(model.merge_and_unload())
    assert got != answers(build())


def test_train_and_eval_switch_dropout():
    model = move(wrap(classifier(**DROPOUT)))
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(ids()).logits, model(ids()).logits)
        model.eval()
        logits = model(ids()).logits
        assert torch.equal(model(ids()).logits, logits)
        merged = model.merge_and_unload()
        assert not merged.training
        assert torch.equal(merged(ids()).logits, logits)


def test_torch_save_holds_the_whole_model(tmp_path):
    model = move(wrap(classifier()))
    loss = loss_of(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loss_of(loaded), loss) and torch.equal(loss_of(model), loss)
    assert torch.equal(loss_of(loaded.merge_and_unload()), loss)


def test_half_and_to():
    model = move(wrap(classifier()))
    logits = model(ids()).logits
    assert torch.equal(model.to(subspace_models.DEVICE)(ids()).logits, logits)
    model.half()
    assert model.dtype == torch.float16 and model.theta.dtype == torch.float32
    exact = move(wrap(classifier().half().float()))
    torch.testing.assert_close(model(ids()).logits.float(), exact(ids()).logits, rtol=0, atol=5e-3)


def test_attributes_are_those_of_the_wrapped_model():
    model = wrap(gpt2())
    assert model.base_model is model.wrapped.transformer
    assert model.get_input_embeddings() is model.wrapped.transformer.wte
    assert model.num_parameters() == model.projection.D
    with pytest.raises(AttributeError, match="base_model"):
        _ = wrap(mlp()).base_model


def lora(*targets):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(target_modules=list(targets), init_lora_weights=False)


def around(model):
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, lora("query"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    "meddle",
    [
        lambda model: model.wrapped.resize_token_embeddings(50),
        lambda model: model.wrapped.set_input_embeddings(nn.Embedding(41, 16)),
        lambda model: model.wrapped.add_adapter(lora("query")),
        around,
    ],
)
def test_other_parameters_than_at_wrapping_are_refused(meddle, used):
    model = wrap(classifier())
    if used:
        model(ids())
    meddle(model)
    message = r"added, replaced, resized or removed .*the first .*(word_embeddings|lora)"
    with pytest.raises(RuntimeError, match=message):
        move(model)(ids())
    with pytest.raises(RuntimeError, match=message):
        model.merge_and_unload()


@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_resized_before_wrapping_or_after():
    model = wrap(gpt2())
    for method in ("resize_token_embeddings", "set_input_embeddings", "set_output_embeddings"):
        with pytest.raises(AttributeError, match=f"{method}: call it before get_subspace_model"):
            getattr(model, method)
    resized = model.unload()
    resized.resize_token_embeddings(50)
    assert wrap(resized).projection.D == wrap(gpt2()).projection.D + 9 * 16


@pytest.mark.filterwarnings("ignore")
def test_a_lora_adapter_in_a_subspace():
    """Around a PeftModel, D is what LoRA trains; the merges are one after the other."""
    peft = pytest.importorskip("peft")
    plain = gpt2().eval()
    model = move(wrap(peft.get_peft_model(plain, lora("c_attn")).eval()))
    assert model.projection.D == 2 * (8 * 16 + 8 * 48)
    logits = model(ids()).logits
    with model.wrapped.disable_adapter():
        torch.testing.assert_close(model(ids()).logits, gpt2().eval()(ids()).logits)
    adapted = model.merge_and_unload()
    assert torch.equal(adapted(ids()).logits, logits)
    torch.testing.assert_close(adapted.merge_and_unload()(ids()).logits, logits)

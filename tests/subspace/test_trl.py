"""TRL's trainers on a SubspaceModel as it comes: SFT and GRPO with a rule as reward, down to 13
numbers, with and without a reference model; every gradient against that of training all weights."""

import pytest
import torch

from fastfood.subspace import SubspaceConfig, get_subspace_model

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
pytest.importorskip("tokenizers")

from writers import llama, tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets.disable_progress_bars()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=24,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)


def thirteen(model, weights="resident"):
    return get_subspace_model(model, SubspaceConfig(d=13, method="did", seed=3), weights=weights)


def arguments(kind, folder, **changes):
    """Plain gradient descent, so that a step shows the gradient."""
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(str(folder), **settings | changes)


def sft(model, folder, **changes):
    rows = datasets.Dataset.from_dict({"text": [f"{i}+{i}={'ab'[i % 2]}" for i in range(10)]})
    return trl.SFTTrainer(
        model,
        args=arguments(trl.SFTConfig, folder, **changes),
        train_dataset=rows,
        processing_class=tokenizer(),
    )


def letters(completions, **_):
    return [float(sum(c in "abcd" for c in completion)) for completion in completions]


def grpo(model, folder, **changes):
    rows = datasets.Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(8)]})
    settings = {"num_generations": 4, "max_completion_length": 6, **changes}
    return trl.GRPOTrainer(
        model,
        reward_funcs=letters,
        args=arguments(trl.GRPOConfig, folder, **settings),
        train_dataset=rows,
        processing_class=tokenizer(),
    )


def flat(model):
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("trainer", [sft, grpo])
def test_a_step_is_the_projected_step_of_all_weights(trainer, build, weights, tmp_path):
    full = build()
    before = flat(full)
    trainer(full, tmp_path).train()
    step = flat(full) - before
    model = thirteen(build(), weights)
    trainer(model, tmp_path).train()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 13
    wanted = model.projection.to_dense(torch.float64).T @ step
    # the full step is rounded where it is added to weights up to 1 (norm layers): 2^-24 each
    rounding = 2.0**-24 * step.numel() ** 0.5
    assert wanted.norm() > 1e3 * rounding
    torch.testing.assert_close(model.theta.detach().double(), wanted, rtol=1e-4, atol=rounding)


def test_sft_learns_and_the_merged_model_has_it(tmp_path):
    model = thirteen(llama())
    trainer = sft(model, tmp_path, max_steps=30, learning_rate=0.3, optim="adamw_torch")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    ids = torch.tensor([[5, 13, 5, 14, 16]])
    logits = model.eval()(ids).logits
    assert torch.equal(model.merge_and_unload()(ids).logits, logits)


def test_grpo_raises_the_reward(tmp_path):
    trainer = grpo(
        thirteen(llama()), tmp_path, max_steps=40, learning_rate=0.5, optim="adamw_torch"
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-10:]) > sum(rewards[:10]) + 5


class Base(torch.nn.Module):
    """Makes a SubspaceModel's base TRL's reference model, without a second copy of the weights."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]  # no submodule

    def forward(self, *args, **kwargs):
        (model,) = self.model
        with model.disable_adapter():
            return model(*args, **kwargs)


def test_a_reference_model(tmp_path):
    """Loaded by TRL from where the base came, or the base itself: the same numbers."""
    llama().save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    changes = {"max_steps": 3, "learning_rate": 0.5, "optim": "adamw_torch"}
    loaded = grpo(thirteen(base), tmp_path, beta=0.1, **changes)
    assert torch.equal(flat(loaded.ref_model), flat(llama()))
    own = grpo(thirteen(llama()), tmp_path, **changes)
    own.beta, own.ref_model = 0.1, Base(own.model)
    history = []
    for trainer in (loaded, own):
        transformers.set_seed(0)  # fixes the samples
        trainer.train()
        history.append([entry["kl"] for entry in trainer.state.log_history if "kl" in entry])
    assert history[0][0] == 0 and min(history[0][1:]) > 1e-3
    assert history[0] == history[1]
    assert torch.equal(loaded.model.theta, own.model.theta)


def test_weights_written_through_data_are_seen_behind_a_replaced_forward(tmp_path):
    model = sft(thirteen(llama()), tmp_path).model
    ids = torch.tensor([[5, 13, 5, 14, 16]])
    before = model(ids, labels=ids, fused_lm_head=True).loss
    model.theta.data.fill_(1.0)
    assert model(ids, labels=ids, fused_lm_head=True).loss != before

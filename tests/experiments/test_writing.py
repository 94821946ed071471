"""Models that write: what they generate and score is what one token at a time gives, what they are
trained on, and how often a subspace's weights are made meanwhile."""

from dataclasses import replace

import pytest
import torch
from writers import llama, save, sums, t5, write_rows

from fastfood.experiments.data.tasks import load_task
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.trial import Facts
from fastfood.experiments.training import rewards
from fastfood.experiments.training.models import build_base, build_model, trained_numbers
from fastfood.experiments.training.train import train_trial
from fastfood.experiments.training.writing import generate, score_written, token_scores
from fastfood.experiments.trials.facts import inspect
from fastfood.experiments.trials.plan import cell_trials
from fastfood.weights import Run

METHODS = ("did", "said", "lora", "vera", "unilora", "tinylora")
BUILD = {"llama": llama, "t5": t5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("writers")
    mixed = [row | {"prompt": "1+" * (i % 3) + row["prompt"]} for i, row in enumerate(sums(60))]
    write_rows(root / "sums", train=mixed[:40], test=mixed[40:])
    return root, {name: save(root / name, build()) for name, build in BUILD.items()}


def settings(folders, model="llama", **changes):
    root, models = folders
    given = {"objective": "sft", "task": "sums", "model": str(models[model])}
    given |= {"prompt_column": "prompt", "completion_column": "completion", "seeds": 1}
    given |= {"splits": ("train", "test"), "data": str(root / "sums"), "device": "cpu"}
    given |= {"dims": (20,), "max_steps": 3, "batch_size": 8, "full_lrs": (1e-2,)}
    return complete(Settings(**given | changes))


def facts(settings, **changes):
    """What `inspect` would find out, of a model that nobody looks at."""
    found = {"device": "cpu", "D": 3712, "m": 4, "num_labels": 0, "splits": {}, "sizes": {}}
    found |= {"majority": None, "overlap": 0, "contamination": [], "data_hash": "aa"}
    found |= {"model_hash": "bb", "counts": {}, "reward_hash": None}
    return Facts(**found | changes)


def trial_of(settings, method, d=20, size=None):
    return cell_trials(settings, facts(settings), method, d, 0, size)[-1]


def model_and_task(settings):
    return build_base(settings, 0, seed=0).eval(), load_task(settings)


def next_logits(model, task, prompt, written):
    """The logits of the next token, from a forward of one row without padding or cache."""
    if task.encoder_decoder:
        decoder = torch.tensor([[0, *written]])  # 0 starts T5's decoder
        return model(torch.tensor([prompt]), decoder_input_ids=decoder).logits[0, -1]
    return model(torch.tensor([[*prompt, *written]])).logits[0, -1]


@torch.no_grad()
def greedy(model, task, prompt):
    written = []
    while len(written) < task.max_new_tokens and (not written or written[-1] != 1):
        written.append(int(next_logits(model, task, prompt, written).argmax()))
    return task.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("model", BUILD)
def test_generation_in_batches_is_that_of_one_token_at_a_time(folders, model):
    model, task = model_and_task(settings(folders, model, max_new_tokens=5))
    torch.nn.init.normal_(model.get_output_embeddings().weight)  # so that no two tokens tie
    model.generation_config.repetition_penalty = 1.9  # checkpoints bring such things
    model.generation_config.do_sample = True
    model.train()
    texts = generate(model, task, task.test)
    assert model.training
    wanted = [greedy(model.eval(), task, row["prompt_ids"]) for row in task.test]
    assert texts == wanted and len(set(texts)) > 3


@pytest.mark.parametrize("model", BUILD)
def test_the_probabilities_of_a_completion_are_those_of_its_tokens_in_turn(folders, model):
    model, task = model_and_task(settings(folders, model))
    scored = token_scores(model, task, task.test)
    for row, one in list(zip(task.test, scored, strict=True))[:6]:
        written = []
        with torch.no_grad():
            for token, value, likeliest in zip(row["completion_ids"], *one, strict=True):
                logits = next_logits(model, task, row["prompt_ids"], written).double()
                torch.testing.assert_close(value, logits.log_softmax(-1)[token], rtol=1e-5, atol=0)
                assert likeliest == (logits.argmax() == token)
                written.append(token)


def test_few_logits_at_a_time_give_the_same(folders, monkeypatch):
    model, task = model_and_task(settings(folders))
    wanted = torch.cat([row.log_probabilities for row in token_scores(model, task, task.test)])
    monkeypatch.setattr("fastfood.experiments.training.writing.LOGITS_TOGETHER", 1)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    scored = torch.cat([row.log_probabilities for row in token_scores(model, task, task.test)])
    assert len(calls) == len(task.test)
    torch.testing.assert_close(scored, wanted)


def test_the_scores(folders, monkeypatch):
    model, task = model_and_task(settings(folders))
    scored = token_scores(model, task, task.test)
    losses = torch.cat([-row.log_probabilities for row in scored])
    loss = score_written("loss", model, task, task.test)
    assert loss == pytest.approx(-losses.mean().item())
    share = torch.cat([row.likeliest for row in scored]).double().mean().item()
    assert score_written("tokens", model, task, task.test) == pytest.approx(share)
    right = [row["completion"] for row in task.test[:5]] + ["?"] * (len(task.test) - 5)
    monkeypatch.setattr("fastfood.experiments.training.writing.generate", lambda *_, **__: right)
    assert score_written("exact", model, task, task.test) == 5 / len(task.test)

    def reward(completions, reference, **_):
        return [
            float(text == wanted) / 2 for text, wanted in zip(completions, reference, strict=True)
        ]

    assert score_written("reward", model, task, task.test, reward=reward) == 2.5 / len(task.test)


@pytest.mark.parametrize("objective", ["sft", "grpo"])
@pytest.mark.parametrize("method", ["base", "full", *METHODS])
def test_every_method_trains_what_it_counts_and_always_the_same(folders, method, objective):
    if objective == "grpo":
        pytest.importorskip("trl")
    given = settings(folders, objective=objective, methods=METHODS, sizes=(2,), metric="loss")
    if objective == "grpo":
        given = given.replaced(reward=f"{__name__}:letters", max_new_tokens=4)
    found = inspect(given)
    d = {"base": 0, "full": found.D}.get(method, 20)
    size = 2 if method in found.counts else None
    d = found.counts[method]["2"] if size else d
    trial = cell_trials(given, found, method, d, 0, size)[-1]
    model = build_model(given, trial, 0)
    assert trained_numbers(model, trial) == (d, 0)
    first, second = train_trial(given, trial), train_trial(given, trial)
    assert (first.validation, first.test) == (second.validation, second.test)
    base, task = model_and_task(given)
    before = score_written("loss", base, task, task.test)
    assert (first.test == before) == (method == "base")


@pytest.mark.parametrize("method", ["full", "said", "lora", "unilora"])
def test_an_encoder_with_a_decoder_is_trained(folders, method):
    given = settings(folders, "t5", methods=METHODS, sizes=(2,), metric="tokens", full_lrs=(0.1,))
    given = given.replaced(max_steps=40, lrs=(1.0,), peft_lrs=(0.1,))
    found = inspect(given)
    size = 2 if method in found.counts else None
    d = found.counts[method]["2"] if size else 200
    base = train_trial(given, cell_trials(given, found, "base", 0, 0)[0])
    scored = train_trial(given, cell_trials(given, found, method, d, 0, size)[-1])
    assert scored.test > base.test + 0.2


@pytest.mark.parametrize("method", ["did", "lora"])
def test_grpo_may_hold_on_to_the_base_model(folders, method):
    pytest.importorskip("trl")
    given = settings(folders, objective="grpo", methods=METHODS, sizes=(2,), lrs=(0.3,))
    given = given.replaced(reward=f"{__name__}:letters", metric="loss", max_new_tokens=4)
    free, held = given.replaced(max_steps=20), given.replaced(max_steps=20, beta=9.0)
    found = inspect(given)
    size = 2 if method in found.counts else None
    d = found.counts[method]["2"] if size else 200
    base, *trained = (
        train_trial(one, cell_trials(one, found, name, n, 0, of)[-1]).test
        for one, name, n, of in [
            (free, "base", 0, None),
            (free, method, d, size),
            (held, method, d, size),
        ]
    )
    assert abs(trained[1] - base) < 0.7 * abs(trained[0] - base)


def test_sft_learns_the_sums_and_the_base_model_does_not_know_them(folders):
    given = settings(folders, max_steps=150, batch_size=32, metric="tokens")
    base = train_trial(given, trial_of(given, "base", 0)).test
    full = train_trial(given, trial_of(given, "full", 3712)).test
    assert base < 0.3 and full > base + 0.3


def test_grpo_raises_the_reward(folders):
    pytest.importorskip("trl")
    given = settings(folders, objective="grpo", max_steps=25, batch_size=32, full_lrs=(3e-3,))
    given = given.replaced(reward=f"{__name__}:letters", metric="reward", max_new_tokens=4)
    scores = [train_trial(given, trial_of(given, m, d)).test for m, d in [("base", 0), ("full", 9)]]
    assert scores[1] > scores[0] + 0.5


def letters(completions, **_):
    return [float(sum(c in "abcd" for c in text)) for text in completions]


class Projections:
    """Counts how often the weights of a subspace are made."""

    def __init__(self, monkeypatch):
        self.count, original = 0, Run.perturb_

        def counted(run, *arguments, **named):
            self.count += 1
            return original(run, *arguments, **named)

        monkeypatch.setattr(Run, "perturb_", counted)


def test_generation_makes_the_weights_once(folders, monkeypatch):
    given = settings(folders, max_new_tokens=6)
    model, task = build_model(given, trial_of(given, "did"), 0), load_task(given)
    projections = Projections(monkeypatch)
    with torch.no_grad():
        model.theta.fill_(0.1)
    generate(model, task, task.test)
    token_scores(model, task, task.test)
    assert projections.count == 1


@pytest.mark.parametrize("objective", ["sft", "grpo"])
def test_an_optimizer_step_makes_the_weights_once(folders, objective, monkeypatch):
    if objective == "grpo":
        pytest.importorskip("trl")
    given = settings(folders, objective=objective, max_steps=4, accumulation=2, batch_size=16)
    projections = Projections(monkeypatch)
    train_trial(given, trial_of(given, "did"))
    # before the first step, and after each; the last ones also serve validation and test
    assert projections.count == 5


def test_rows_of_a_step_may_come_in_several_passes(folders):
    whole = settings(folders, metric="loss", batch_size=16)
    parts = whole.replaced(accumulation=4)
    scores = [train_trial(s, trial_of(s, "full", 3712)).test for s in (whole, parts)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4) and scores[0] != scores[1]
    assert trial_of(whole, "full").key != trial_of(parts, "full").key


def test_streamed_weights_and_checkpointing_score_the_same(folders, monkeypatch):
    given = settings(folders, metric="loss")
    copies = Projections(monkeypatch)
    wanted = train_trial(given, trial_of(given, "said")).test
    for changes in ({"weights": "streamed"}, {"gradient_checkpointing": True}):
        other = given.replaced(**changes)
        before = copies.count
        build_model(other, trial_of(other, "said"), 0)(torch.tensor([[3, 4]]))
        assert (copies.count > before) == ("weights" not in changes)
        assert train_trial(other, trial_of(other, "said")).test == pytest.approx(wanted, rel=1e-5)
        assert trial_of(other, "said").key != trial_of(given, "said").key


def test_weights_may_be_of_sixteen_bits(folders):
    given = settings(folders, dtype="bfloat16", metric="loss")
    model = build_model(given, trial_of(given, "did"), 0)
    assert next(model.wrapped.parameters()).dtype == torch.bfloat16
    assert inspect(given).model_hash != inspect(settings(folders)).model_hash
    assert train_trial(given, trial_of(given, "did")).test < 0


@pytest.mark.parametrize(
    "source, refused",
    [
        ("def score(completions, **_): return [1.0] * 9", "wanted a function that gives 4 finite"),
        ("def score(completions, **_): return ['good'] * 4", "got ValueError: could not convert"),
        ("def score(completions, **_): return 1.0", "got TypeError"),
        ("def score(completions, **_): return [float('nan')] * 4", r"got \[nan, nan"),
        ("def score(completions, **_): 1 / 0", "got ZeroDivisionError: division by zero"),
        ("def score(texts): return [1.0]", "got TypeError: score.. got an unexpected keyword"),
        ("score = 1", "wanted a Python function, .* got '.*:score', a int"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", r"SystemExit: 3"),
    ],
)
def test_a_reward_that_gives_no_numbers_is_refused(folders, tmp_path, source, refused):
    (tmp_path / "rewards.py").write_text(source)
    name = f"{tmp_path / 'rewards.py'}:score"
    task = load_task(settings(folders))
    with pytest.raises(ValueError, match=f"^reward: .*{refused}"):
        rewards.check_reward(name, task)


def test_a_reward_is_found_in_the_working_folder_and_hashed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/usr/lib"])
    source = "def score(completions, **_):\n    return [1.0] * len(completions)\n"
    (tmp_path / "my_rewards_a.py").write_text(source)
    (tmp_path / "my_rewards_b.py").write_text(source.replace("1.0", "2.0"))
    hashes = [rewards.hash_reward(f"my_rewards_{name}:score") for name in "ab"]
    assert len(set(hashes)) == 2
    with pytest.raises(ValueError, match="reward: wanted a Python function"):
        rewards.load_reward("my_rewards_a:missing")


def test_a_trial_depends_on_the_source_of_its_reward(folders):
    given = settings(folders, objective="grpo", reward=f"{__name__}:letters")
    found = [facts(given, reward_hash=text) for text in ("aa", "bb")]
    assert len({cell_trials(given, one, "did", 20, 0)[0].key for one in found}) == 2


def test_the_reward_of_the_answer(folders):
    task = replace(load_task(settings(folders)), answer=lambda text: text or None)
    reward = rewards.answer_rewards(task)
    assert reward(completions=["7", "8", ""], reference=["7", "7", ""]) == [1.0, 0.0, 0.0]
    chat = [[{"role": "assistant", "content": "7"}]]
    assert reward(completions=chat, reference=["7"]) == [1.0]


def test_models_that_grpo_cannot_train_are_refused(folders):
    pytest.importorskip("trl")
    with pytest.raises(ValueError, match="model: wanted a model of one stack of layers for the"):
        inspect(settings(folders, "t5", objective="grpo"))


def test_a_checkpoint_that_lacks_its_head_is_refused(tmp_path, folders):
    model = llama()
    save(tmp_path / "body", model.model)
    save(tmp_path / "part", model)
    kept = {name: weight for name, weight in model.state_dict().items() if "lm_head" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=kept)
    for name, refused in (("body", "a LlamaModel"), ("part", "which lacks lm_head.weight")):
        given = settings(folders).replaced(model=str(tmp_path / name))
        with pytest.raises(ValueError, match=f"model: wanted .* language model, got .*{refused}"):
            inspect(given)

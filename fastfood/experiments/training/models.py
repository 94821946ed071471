"""The models of a study: the base model theta_0 of a seed, and what each method trains of it. That
is nothing (base), everything (full), a subspace (DID, SAID), or the weights of one of PEFT's
adapters (LoRA, VeRA, Uni-LoRA, TinyLoRA).

The adapters sit on all linear layers below the head, PEFT's "all-linear". The head of a classifier,
which is what transformers puts on top of the pre-trained model, is trained in full beside them, as
PEFT does. The head of a model that writes is part of the checkpoint and stays as it is."""

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..data.checkpoints import writing_config
from ..settings.measurement import SIZED_METHODS, SUBSPACE_METHODS, Settings
from ..settings.trial import Trial

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

UNILORA_RANK = 4  # of the low-rank matrices that theta is spread over; PEFT's default
# for from_pretrained: no pickle is loaded and no code of the checkpoint's is run
SAFELY = {"use_safetensors": True, "trust_remote_code": False}
LAYERS_AT_MOST = 100_000  # TinyLoRA seeds layer i by its seed + i: no two trials share a matrix


def build_base(settings: Settings, num_labels: int, seed: int) -> "PreTrainedModel":
    """The base model theta_0 of a seed in `settings.dtype` on the CPU: the same for every method, d
    and rate. A head that the model's folder does not bring is drawn from the seed. With one label
    it is a regression head, whose loss is the mean squared error. A model that writes has no new
    head, and `num_labels` does not matter to it.

    Raises ValueError when the model cannot be loaded.
    """
    from transformers import set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()  # a new head is no news here
    logging.disable_progress_bar()
    set_seed(seed)  # decides a new head's weights, or all weights of the digits model
    if settings.task == "digits" and settings.model is None:
        return digits_model(num_labels)
    return _load_writer(settings) if settings.writes else _load(settings, num_labels)


def _load_writer(settings: Settings) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = writing_config(settings)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    wanted, got = "a checkpoint of a whole language model", repr(settings.model)
    try:
        model, loaded = auto.from_pretrained(
            settings.model,
            revision=settings.revision or "main",
            dtype=getattr(torch, settings.dtype),
            output_loading_info=True,
            **SAFELY,
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: wanted {wanted}, got {got} ({reason})") from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ValueError(f"model: wanted {wanted}, got {got}, which lacks {missing[0]}")
    return model


def _load(settings: Settings, num_labels: int) -> nn.Module:
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    images = settings.task == "digits"
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    revision = settings.revision or "main"
    try:
        config = AutoConfig.from_pretrained(
            settings.model, revision=revision, trust_remote_code=False
        )
        # the checkpoint may have been of another task, with labels of another kind
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
        config.num_labels = num_labels
        return auto.from_pretrained(
            settings.model,
            revision=revision,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=getattr(torch, settings.dtype),
            **SAFELY,
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        kind = "an image" if images else "a sequence"
        wanted = f"a folder or hub name of {kind} classification model"
        got = repr(settings.model)
        if settings.revision:
            got += f" at revision {settings.revision!r}"
        raise ValueError(f"model: wanted {wanted}, got {got} ({reason})") from error


def digits_model(num_labels: int) -> "PreTrainedModel":
    """A ViT of 102,218 random weights (with ten labels) for images of 8 x 8 grey pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            num_labels=num_labels,
        )
    )


def build_model(settings: Settings, trial: Trial, num_labels: int) -> nn.Module:
    """The module that a trial trains, on the device that it will stay on.

    Raises ValueError when the trial's d does not fit the model or the model cannot be loaded.
    """
    base = build_base(settings, num_labels, trial.seed).to(trial.device)
    # the Trainer reads it through any wrapper: the loss is the batch's mean, whatever is trained
    base.accepts_loss_kwargs = False
    if trial.method == "base":
        return base.requires_grad_(False)
    if trial.method == "full":
        return base
    if trial.method not in SUBSPACE_METHODS:
        return _with_adapter(base, trial)
    import fastfood

    config = fastfood.SubspaceConfig(
        trial.d,
        method=trial.method,
        seed=trial.seed,
        normalization=trial.normalization,
    )
    return fastfood.get_subspace_model(base, config, weights=trial.weights or "resident")


def head_of(base: "PreTrainedModel") -> dict[str, nn.Module]:
    """The modules beside the pre-trained model, by name: classifier, score, classification_head,
    or sequence_summary and logits_proj; of a model that writes, the layer that gives the logits.

    Raises ValueError when the model is not a pre-trained one with a head on top.
    """
    if base.can_generate():
        (head,) = [item for item in base.named_modules() if item[1] is base.get_output_embeddings()]
        return dict([head])
    body = base.base_model
    modules = {
        name: child
        for name, child in base.named_children()
        if child is not body and any(True for _ in child.parameters())
    }
    if body is base or not modules:
        wanted = "a pre-trained model with a head on top"
        raise ValueError(f"model: wanted {wanted}, got {type(base).__name__}")
    return modules


def _head_parameters(base: "PreTrainedModel") -> list[nn.Parameter]:
    """What is trained in full beside an adapter: a classifier's head."""
    if base.can_generate():
        return []
    return [p for module in head_of(base).values() for p in module.parameters()]


class Sides(NamedTuple):
    """How many numbers go into a linear layer and come out of it."""

    inputs: int
    outputs: int


def _adapted_layers(base: nn.Module) -> dict[str, Sides]:
    """All linear layers below the head by name, shared ones once; GPT-2's Conv1D is one, whose
    weight is stored transposed."""
    from transformers.pytorch_utils import Conv1D

    inside_head = {id(m) for module in head_of(base).values() for m in module.modules()}
    layers = {}
    for name, module in base.named_modules():
        if id(module) in inside_head:
            continue
        if isinstance(module, nn.Linear):
            layers[name] = Sides(module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            layers[name] = Sides(*module.weight.shape)
    if not layers:
        wanted = "a model with linear layers below its head"
        raise ValueError(f"model: wanted {wanted}, got {type(base).__name__}")
    return layers


def _with_adapter(base: nn.Module, trial: Trial) -> nn.Module:
    """`base` with the adapter and the head to be trained; all random matrices follow the seed."""
    import peft

    head = _head_parameters(base)
    config = _adapter_config(base, trial)
    torch.manual_seed(trial.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about what PEFT asks transformers
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it right for each layer
        model = peft.get_peft_model(base, config)
    for parameter in head:
        parameter.requires_grad_(True)
    return model


def _adapter_config(base: nn.Module, trial: Trial):
    import peft

    targets, seed = list(_adapted_layers(base)), trial.seed
    match trial.method:
        case "lora":  # alpha = r: the product of both matrices is added as it is, at every rank
            size = trial.size
            return peft.LoraConfig(r=size, lora_alpha=size, target_modules=targets)
        case "vera":
            return peft.VeraConfig(r=trial.size, projection_prng_key=seed, target_modules=targets)
        case "tinylora":  # one vector of `size` numbers, which all layers share
            return peft.TinyLoraConfig(
                u=trial.size,
                weight_tying=1.0,
                projection_seed=seed * LAYERS_AT_MOST,
                target_modules=targets,
            )
        case "unilora":
            return peft.UniLoraConfig(
                r=UNILORA_RANK,
                theta_d_length=_unilora_length(base, trial),
                proj_seed=seed,
                target_modules=targets,
            )
    wanted = "full, did, said, lora, vera, unilora or tinylora"
    raise ValueError(f"method: wanted {wanted}, got {trial.method!r}")


def unilora_limits(base: nn.Module, head: str | None) -> tuple[int, int]:
    """The least and the largest d of Uni-LoRA, in which the head counts where it is "inside"."""
    inside = _numel(_head_parameters(base)) if head == "inside" else 0
    return inside + 1, inside + UNILORA_RANK * _sides(base)


def _unilora_length(base: nn.Module, trial: Trial) -> int:
    least, most = unilora_limits(base, trial.head)
    head = least - 1
    if not least <= trial.d <= most:
        inside = f" and the head's {head} numbers count in it" if head else ""
        wanted = f"from {least} to {most}, since theta has at least 1 number{inside}"
        raise ValueError(f"d: wanted {wanted}, got {trial.d}")
    return trial.d - head


def _sides(base: nn.Module) -> int:
    return sum(sum(sides) for sides in _adapted_layers(base).values())


def _numel(parameters) -> int:
    return sum(p.numel() for p in parameters)


def trained_counts(
    settings: Settings, num_labels: int, base: nn.Module | None = None
) -> dict[str, dict[str, int]]:
    """How many numbers LoRA, VeRA and TinyLoRA train at each of `settings.sizes`, for those of them
    among `settings.methods`: {method: {str(size): count}}, the head's in it when `settings.head` is
    "inside".

    base: what `build_base` returned, which is made when it is missing and left as it is. LoRA
    trains r (in + out) numbers a layer (Hu et al., 2022, section 4.1), VeRA r + out (Kopiczko et
    al., 2024, section 3.2), TinyLoRA u in all. Raises ValueError as `build_base` and `head_of` do.
    """
    methods = [name for name in SIZED_METHODS if name in settings.methods]
    if not methods:
        return {}
    if base is None:
        base = build_base(settings, num_labels, seed=0)
    layers, sides = _adapted_layers(base).values(), _sides(base)
    outputs = sum(layer.outputs for layer in layers)
    head = _numel(_head_parameters(base)) if settings.head == "inside" else 0
    count = {
        "lora": lambda size: size * sides,
        "vera": lambda size: size * len(layers) + outputs,
        "tinylora": lambda size: size,
    }
    return {
        name: {str(size): count[name](size) + head for size in settings.sizes_of(name)}
        for name in methods
    }


def trained_numbers(model: "PreTrainedModel | PeftModel", trial: Trial) -> tuple[int, int]:
    """How many numbers `build_model`'s module trains: in all, and of a head beside an adapter."""
    trained = _numel(p for p in model.parameters() if p.requires_grad)
    if trial.method in ("base", "full", *SUBSPACE_METHODS):
        return trained, 0
    return trained, _numel(_head_parameters(model.get_base_model()))


def parameter_groups(model: nn.Module, trial: Trial) -> list[dict]:
    """The optimizer's groups: theta and lambda with their own rates, or one group of all that is
    trained, an adapter and its head alike."""
    import fastfood

    if trial.method in SUBSPACE_METHODS:
        return fastfood.parameter_groups(model, trial.learning_rate, trial.lambda_lr)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": trained, "lr": trial.learning_rate}]

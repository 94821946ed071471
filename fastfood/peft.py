"""DID and SAID as methods of PEFT: get_peft_model(model, SaidConfig(d=200)) trains exactly d
numbers, the head included, with PEFT's own files, named adapters and Trainer support.

Importing this module registers both methods with PEFT. A SubspaceModel around the base model does
all the work; what PEFT sees is a tuner that holds the base model, and in it one tuner layer that
holds theta and lambda_ of every adapter.
"""

import warnings
from collections.abc import Callable, Hashable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import peft
import torch
from peft import PeftConfig
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType, register_peft_method
from peft.utils.integrations import skip_init_on_device
from torch import nn

from .adapter import base_hash, other_base
from .layout import SubspaceConfig
from .subspace import SubspaceModel, get_subspace_model

if not hasattr(tuners_utils, "_check_adapters_not_merged"):
    raise ImportError(f"fastfood.peft needs peft 0.21 or newer, got {peft.__version__}")

__all__ = ["DidConfig", "SaidConfig"]
_CUSTOM = "custom"  # stands in adapter_config.json for a function given as groups
_FOREIGN = ("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "bias")


class _NoModules(list):
    """PEFT's task classes require modules_to_save and extend it by the head; this list names no
    module and ignores what is added, so the head stays inside the budget."""

    def extend(self, names):
        pass


def _refuse(names) -> None:
    """Raises TypeError if one of the names is a setting by which other methods pick modules."""
    for name in _FOREIGN:
        if name in names:
            raise TypeError(
                f"{name} is no setting of SAID and DID, which train all that requires gradients, "
                "the head included: call requires_grad_(False) on the rest before get_peft_model"
            )


@dataclass
class _Config(PeftConfig):
    """d, seed, normalization, groups, projection, gradient: as in SubspaceConfig.

    weights: how the SubspaceModel holds the weights, as in get_subspace_model; not saved, and the
        first adapter of a model decides.
    base_hash: of the base model, written by save_pretrained. An adapter that has one is refused
        on any other base model; None, as in a new configuration, takes every base model.

    A function given as groups is saved as "custom": load the configuration, set groups to the
    function and pass it as `config` to PeftModel.from_pretrained.

    Raises TypeError or ValueError as SubspaceConfig does, and TypeError for settings of other
    methods that pick modules, such as target_modules and modules_to_save.
    """

    d: int | None = None
    seed: int = 0
    normalization: str = "global"
    groups: str | Callable[[str], Hashable] = "layer"
    projection: str = "fastfood"
    gradient: str = "exact"
    weights: str = "resident"
    base_hash: str | None = None

    method: ClassVar[str]
    modules_to_save: ClassVar[list[str]] = _NoModules(["(no module)"])
    _trained_on: ClassVar[str | None] = None  # the base_hash to save; `base_hash` is what to check

    def __new__(cls, *args, **settings):
        _refuse(settings)
        return super().__new__(cls)

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType[self.method.upper()]
        self.subspace_config(groups="layer" if self.groups == _CUSTOM else self.groups)
        if not isinstance(self.base_hash, str | None):
            got = type(self.base_hash).__name__
            raise TypeError(f"base_hash: wanted a string or None, got a {got}")

    def subspace_config(self, **changes) -> SubspaceConfig:
        """The same for get_subspace_model; raises as SubspaceConfig does."""
        names = ("d", "method", "seed", "normalization", "groups", "projection", "gradient")
        return SubspaceConfig(**{name: getattr(self, name) for name in names} | changes)

    def to_dict(self) -> dict:
        """All that is saved."""
        settings = super().to_dict()
        del settings["weights"]
        settings["groups"] = _CUSTOM if callable(self.groups) else self.groups
        settings["base_hash"] = self._trained_on or self.base_hash
        return settings


@dataclass
class SaidConfig(_Config):
    __doc__ = f"SAID (eq. 3): theta and a scale lambda_ per group. {_Config.__doc__}"

    method: ClassVar[str] = "said"


@dataclass
class DidConfig(_Config):
    __doc__ = f"DID (eq. 2): theta alone. {_Config.__doc__}"

    method: ClassVar[str] = "did"


class SubspaceLayer(nn.Module, BaseTunerLayer):
    """theta and lambda_ of every adapter, which are the SubspaceModel's own, by adapter name.

    One adapter is active, or none and the model is the base model. A merged one is shown by
    the base model's parameters at once, not from the next forward on, until it is unmerged.
    """

    adapter_layer_names = ("theta", "lambda_")
    active_adapters: list[str]  # of BaseTunerLayer
    merged_adapters: list[str]

    def __init__(self, model: SubspaceModel, weights: str):
        super().__init__()
        self.weights = weights
        self.theta, self.lambda_ = nn.ParameterDict(), nn.ParameterDict()
        self._held = [model]  # in a list: a submodule would hold the base model a second time
        self._disabled = ExitStack()
        self._active_adapter = list(model.adapters)
        self.merged_adapters = []
        self.share()

    @property
    def subspace_model(self) -> SubspaceModel:
        """What does the work."""
        return self._held[0]

    def get_base_layer(self) -> nn.Module:
        """The base model, for PEFT's inspection."""
        return self.subspace_model.wrapped

    def share(self) -> None:
        """Registers the SubspaceModel's parameters as this layer's."""
        for name, adapter in self.subspace_model.adapters.items():
            self.theta[name] = adapter.theta
            if adapter.lambda_ is not None:
                self.lambda_[name] = adapter.lambda_

    def show(self) -> None:
        """Has the next forward use the merged or the active adapter, or theta_0 if none is."""
        self._disabled.close()
        for name in self.merged_adapters or self.active_adapters:
            self.subspace_model.set_adapter(name)
        if not self.merged_adapters and (self.disable_adapters or not self.active_adapters):
            self._disabled.enter_context(self.subspace_model.disable_adapter())

    def _check(self, adapter_names: list[str]) -> None:
        wanted = list(self.theta)
        if len(adapter_names) > 1 or not set(adapter_names) <= set(wanted):
            raise ValueError(f"adapter_names: wanted a single one of {wanted}, got {adapter_names}")

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes one adapter the active one, trainable unless inference_mode.

        Raises ValueError if it is unknown, or if there are several.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check(names)
        if self.merged:
            warnings.warn("the merged adapter is unmerged by set_adapter", stacklevel=2)
            self.unmerge()
        super().set_adapter(names, inference_mode)
        self.show()

    def enable_adapters(self, enabled: bool) -> None:
        """Shows theta_D, or with enabled=False theta_0, after which nothing is merged."""
        if not enabled and self.merged:
            self.unmerge()
        super().enable_adapters(enabled)
        self.show()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forgets an adapter. If it was active, another becomes so; if it was the last one, the
        base model is taken out."""
        super().delete_adapter(adapter_name)
        model, others = self.subspace_model, list(self.theta)
        if not others:
            model.unload()
            return
        if model.active_adapter == adapter_name:
            model.set_adapter(others[0])
        model.delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes the weights now, of the active adapter or the one named.

        Raises ValueError if several adapters are to be merged, and with safe_merge, nothing being
        merged, if a weight would not be finite.
        """
        names = list(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        self._check(self.merged_adapters + names)
        self.merged_adapters = names
        self.show()
        self.subspace_model.refresh()
        for segment in self.subspace_model.segments if safe_merge else []:
            module, attribute = segment.owners[0]
            if not getattr(module, attribute).isfinite().all():
                self.unmerge()
                raise ValueError(f"adapter {names[0]} makes {segment.name} not finite")

    def unmerge(self) -> None:
        if not self.merged:
            warnings.warn("there is no merged adapter to unmerge", stacklevel=2)
        self.merged_adapters = []
        self.show()

    def _move_adapter_to_device_of_base_layer(self, adapter_name, device=None):
        """Copies values out of new parameters, which PEFT put in place of ours while it loaded with
        low_cpu_mem_usage; it calls this last."""
        adapter = self.subspace_model.adapters[adapter_name]
        with torch.no_grad():
            adapter.theta.copy_(self.theta[adapter_name])
            if adapter.lambda_ is not None:
                adapter.lambda_.copy_(self.lambda_[adapter_name])
        self.share()


class _Tuner(BaseTuner):
    """The base model, and a tuner layer as said_layer or did_layer.

    Raises ValueError before anything is changed if the model is PEFT's already, or cannot be laid
    into a subspace of that size (get_subspace_model), or is not the one whose base_hash the
    configuration has.
    """

    uses_shared_state = True
    tuner_layer_cls = SubspaceLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, model, peft_config, adapter_name, low_cpu_mem_usage=False, state_dict=None):
        if getattr(model, "peft_config", None):
            raise ValueError("model has a PEFT adapter already: add_adapter() or unload() it")
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)
        self.register_load_state_dict_post_hook(_allow_missing_base)

    @property
    def layer(self) -> Any:
        """The tuner layer, a SubspaceLayer, or None once the base model is taken out."""
        return self._modules.get(f"{self.prefix}layer")

    @skip_init_on_device  # an adapter is too small for low_cpu_mem_usage to matter
    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        """A new adapter with theta = 0, inactive unless it is the first. BaseTuner's other
        arguments change nothing here."""
        config = self.peft_config[adapter_name]
        _refuse(vars(config))
        settings = config.subspace_config()
        if self.layer is None:
            subspace_model = get_subspace_model(model, settings, adapter_name, config.weights)
        else:
            subspace_model = self.layer.subspace_model
            subspace_model.add_adapter(adapter_name, settings)
        if config.base_hash is not None:
            problem = other_base(subspace_model, config.base_hash, adapter_name)
            if problem:
                if self.layer is None:
                    subspace_model.unload()
                else:
                    subspace_model.delete_adapter(adapter_name)
                raise ValueError(f"adapter {adapter_name}: {problem}")
        if self.layer is None:
            self.add_module(f"{self.prefix}layer", SubspaceLayer(subspace_model, config.weights))
        self.layer.share()
        trained = adapter_name in self.active_adapters and not config.inference_mode
        self.layer.set_requires_grad(adapter_name, trained)

    def _create_and_replace(self, *args, **kwargs):
        raise NotImplementedError("SAID and DID replace no modules")

    # BaseTuner looks for tuner layers inside the base model; there is one, beside it

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        self.layer.set_adapter(adapter_name, inference_mode)
        self.active_adapter = adapter_name

    def set_requires_grad(self, adapter_names, requires_grad: bool = True) -> None:
        self.layer.set_requires_grad(adapter_names, requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        self.layer.enable_adapters(enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Raises ValueError for an unknown adapter and a merged one."""
        if adapter_name not in self.peft_config:
            wanted = list(self.peft_config)
            raise ValueError(f"adapter_name: wanted one of {wanted}, got {adapter_name!r}")
        tuners_utils._check_adapters_not_merged(self, adapter_name)
        self.layer.delete_adapter(adapter_name)
        self.active_adapter = self.layer.active_adapters
        del self.peft_config[adapter_name]
        if not self.peft_config:
            delattr(self, f"{self.prefix}layer")

    def merge_adapter(self, adapter_names=None, safe_merge: bool = False) -> None:
        """Raises ValueError if weights are streamed: the base model does not hold them then."""
        if self.layer.weights != "resident":
            raise ValueError(f"weights: wanted 'resident' for a merge, got {self.layer.weights!r}")
        self.layer.merge(safe_merge, adapter_names)

    def unmerge_adapter(self) -> None:
        self.layer.unmerge()

    def _unload_and_optionally_merge(
        self, merge=True, progressbar=False, safe_merge=False, adapter_names=None
    ):
        names = adapter_names or self.layer.merged_adapters or self.active_adapters
        if merge and names != self.layer.merged_adapters:
            self.layer.merge(safe_merge, names)
        subspace_model = self.layer.subspace_model
        take_out = subspace_model.merge_and_unload if merge and names else subspace_model.unload
        model = take_out()
        delattr(self, f"{self.prefix}layer")
        del model.peft_config
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names=None, **kwargs):
        if adapter_names is not None:
            raise ValueError(
                "adapter_names: wanted None, as a batch goes through one adapter, that of "
                f"set_adapter(), got {adapter_names}"
            )
        yield

    # What is moved, copied and saved

    def _apply(self, fn, recurse=True):
        if self.layer is None:
            return super()._apply(fn, recurse)
        self.layer.subspace_model._apply(fn, recurse)
        self.layer.share()
        return self

    def __getstate__(self):
        if self.layer is not None:
            self.layer.subspace_model.__getstate__()  # takes off what cannot be copied
        return self.__dict__.copy()

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        """The adapters alone: the base model has a checkpoint of its own."""
        if self.layer is None:
            module, prefix = self.model, f"{prefix}model."
        else:
            module, prefix = self.layer, f"{prefix}{self.prefix}layer."
        return module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    @classmethod
    def _get_adapter_state_dict(
        cls, model, config, adapter_name, state_dict, unwanted_adapter_names
    ):
        subspace_model = model.base_model.layer.subspace_model
        config._trained_on = base_hash(subspace_model, adapter_name)
        return super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )


def _allow_missing_base(tuner: _Tuner, incompatible) -> None:
    """A load_state_dict hook: a checkpoint of a tuner holds none of the base's weights."""
    if tuner.layer is not None:
        missing = incompatible.missing_keys
        missing[:] = [key for key in missing if "base_model.model." not in f"base_model.{key}"]


class SaidModel(_Tuner):
    """The tuner of SAID."""

    prefix = "said_"


class DidModel(_Tuner):
    """The tuner of DID."""

    prefix = "did_"


def _register(config: type[_Config], tuner: type[_Tuner]) -> None:
    """Makes the method known to PEFT, whose list of methods is an enumeration."""
    name = config.method.upper()
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    register_peft_method(name=config.method, config_cls=config, model_cls=tuner)


_register(SaidConfig, SaidModel)
_register(DidConfig, DidModel)

"""Fine-tuning inside a random subspace: DID and SAID (Aghajanyan et al., 2021) over any nn.Module.

All D trainable numbers of a model become theta_D = theta_0 + lambda * (P theta): equations 2 and 3
of the paper. They lie in a flat buffer that is rewritten when theta has changed, so once for each
optimizer step. Modules see their weights as outputs of one autograd node per group, views of that
buffer; the node's backward applies the adjoint of P to its own rows, so gradients of size D go when
they come. theta and lambda_ are ordinary leaves for optimizers, clipping and checkpoints.
"""

import functools
import itertools
import weakref
from collections import OrderedDict

import torch
from torch import Tensor, nn

from .layout import PROJECTIONS, SubspaceConfig, check, lay_out
from .weights import Node, Run, Weights


class SubspaceModel(nn.Module):
    """A model whose trainable weights are theta_0 + lambda * (P theta); call it as the model.

    theta: (d - m,) for SAID or (d,) for DID, zeros at first. lambda_: (m,), ones at first, or None
    for DID. They are float64 beside a float64 weight, else float32. They are all that trains and
    all that state_dict() holds. theta_0 is read at the first forward, so weights may be loaded or
    broadcast until then; it has to be the same in all processes of a distributed training.

    While wrapped, base_model's own parameters do not require gradients and show the current
    weights. Convert and move the wrapper, not the base model. Gradients of any order are right.
    Attributes that the wrapper lacks (config, generate, device, ...) are the base model's.
    """

    def __init__(self, model: nn.Module, config: SubspaceConfig):
        segments, group_names = lay_out(model, config)
        D = sum(segment.numel for segment in segments)
        m = len(group_names) if config.method == "said" else 0
        if config.d > D:
            raise ValueError(
                f"d must be at most D = {D}, all that the model trains, got {config.d}"
            )
        if config.d <= m:
            raise ValueError(f"d must be above m = {m}, the groups of SAID, got {config.d}")
        super().__init__()
        wide = any(segment.parameter.dtype == torch.float64 for segment in segments)
        options = {
            "dtype": torch.float64 if wide else torch.float32,
            "device": segments[0].parameter.device,
        }
        self.base_model = model
        self.theta = nn.Parameter(torch.zeros(config.d - m, **options))
        self.register_parameter("lambda_", nn.Parameter(torch.ones(m, **options)) if m else None)
        self.subspace_config = config
        self.projection = PROJECTIONS[config.projection](config.d - m, D, seed=config.seed)
        self.group_names = group_names
        self.training = model.training
        self._segments = segments
        self._runs: list[Run] | None = None
        self.base_hash: str | None = None  # of theta_0 and what surrounds it, once adapter needs it
        self._written = None  # leaves, their stamp and their values, as of the last write
        for segment in segments:
            segment.parameter.requires_grad_(False)
        # encoders and heads are also called on their own (generate), numbered blocks are not
        self._hooks = [
            module.register_forward_pre_hook(self._before_forward)
            for name, module in model.named_modules()
            if not any(part.isdigit() for part in name.split("."))
        ]
        self.register_load_state_dict_post_hook(_allow_missing_base)

    def forward(self, *args, **kwargs):
        """The base model's forward."""
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_modules" not in self.__dict__:
                raise
            if "base_model" not in self._modules:
                message = f"{name}: the base model was taken out by unload or merge_and_unload"
                raise AttributeError(message) from None
            return getattr(self._modules["base_model"], name)

    def extra_repr(self) -> str:
        config = self.subspace_config
        return f"{config.method}, d={config.d}, D={self.projection.D}, seed={config.seed}"

    # Writing the weights

    def _before_forward(self, module, args):
        check = self._refresh_if_changed
        if torch.compiler.is_compiling():  # writing the weights is no part of a compiled graph
            check = torch.compiler.disable(check)
        check(module is self.base_model)

    def _refresh_if_changed(self, thorough: bool) -> None:
        leaves, stamp, values = self._written or (None, None, None)
        if stamp == self._stamp() and (
            not thorough
            # some optimizers write through .data, which leaves the version counter as it was
            or all(torch.equal(p, value) for p, value in zip(leaves, values, strict=True))
        ):
            return
        self.refresh()

    def _leaves(self) -> list[nn.Parameter]:
        return [self.theta] if self.lambda_ is None else [self.theta, self.lambda_]

    def _stamp(self) -> list:
        return [(id(p), p.data_ptr(), p._version, p.requires_grad) for p in self._leaves()]

    def refresh(self) -> None:
        """Writes theta_0 + lambda * (P theta) into the weights, one projection per run of a dtype.

        A forward does it if theta or lambda_ changed; call it to read base_model's weights.
        Raises RuntimeError if base_model's weights were moved, converted or written by others.
        """
        # a forward may run under no_grad, inference_mode or autocast
        with torch.inference_mode(False), torch.autocast(self.theta.device.type, enabled=False):
            leaves = self._leaves()
            values = [p.detach().clone() for p in leaves]
            theta, lambda_ = values if len(values) == 2 else (values[0], None)
            with torch.no_grad():
                for run in self.theta_0():
                    run.write(self.projection, theta, lambda_)
            with torch.enable_grad():
                self._attach(leaves, values)
        for run in self._runs:
            run.marks = run.state()
        self._written = leaves, self._stamp(), values

    def theta_0(self) -> list[Run]:
        """The runs of theta_0, which is what the parameters hold when this is first called."""
        if self._runs is None:
            kinds = itertools.groupby(
                self._segments, lambda s: (s.parameter.dtype, s.parameter.device)
            )
            self._runs = [
                Run(run, torch.cat([s.parameter.detach().reshape(-1) for s in run]))
                for run in (list(segments) for _, segments in kinds)
            ]
        return self._runs

    def _attach(self, leaves: list[Tensor], values: list[Tensor]) -> None:
        """Lays new autograd nodes over the weights: instance attributes hide the parameters."""
        versions = [p._version for p in leaves]
        groups = [[] for _ in self.group_names]
        for run in self._runs:
            for segment in run.segments:
                groups[segment.group].append((run, segment))
        for group, places in enumerate(groups):
            released = self.subspace_config.gradient == "released"
            node = Node(self.projection, group, places, leaves, values, versions, released)
            weights = Weights.apply(self.theta, self.lambda_, node)
            for (_, segment), weight in zip(places, weights, strict=True):
                for module, attribute in segment.owners:
                    module.__dict__[attribute] = weight
        for module in self._recurrent():
            # not by its own method: cuDNN's flattening would take them out of the flat buffer
            weights = [getattr(module, name, None) for name in module._flat_weights_names]
            module._flat_weights = weights
            module._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]

    def _recurrent(self) -> list[nn.RNNBase]:
        return [module for module in self.base_model.modules() if isinstance(module, nn.RNNBase)]

    def _detach(self, merged: bool = True) -> None:
        """Uncovers the parameters and gives them memory of their own with theta_D or theta_0."""
        for run in self._runs or []:
            if run.current is None:
                continue
            for segment in run.segments:
                for module, attribute in segment.owners:
                    module.__dict__.pop(attribute, None)
                flat = run.current if merged else run.base
                segment.parameter.data = run.view(flat, segment).clone()
            run.current = run.marks = run.layout = None
        self._written = None
        for module in self._recurrent():
            module._init_flat_weights()

    def _apply(self, fn, recurse=True):
        self._detach()

        def wide(t):  # theta and lambda_ stay so beside 16-bit weights
            new = fn(t)
            return t.to(new.device) if new.dtype in (torch.float16, torch.bfloat16) else new

        if recurse:
            self.base_model._apply(fn)
        for run in self._runs or []:
            run.base = fn(run.base)
        self.base_hash = None
        return super()._apply(wide, recurse=False)

    def _replicate_for_data_parallel(self):
        raise RuntimeError("DataParallel cannot copy a SubspaceModel: use DistributedDataParallel")

    def __getstate__(self):
        self._detach()  # autograd's views can be neither copied nor pickled
        return self.__dict__.copy()

    def __reduce__(self):
        return _blank, (type(self.base_model),), self.__getstate__()

    # What is trained, kept and taken out

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        """theta and lambda_ alone: the base model has a checkpoint of its own."""
        destination = OrderedDict() if destination is None else destination
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    def print_trainable_parameters(self) -> None:
        """Prints how many numbers train, out of how many, and the groups with their sizes."""
        sizes = [0] * len(self.group_names)
        for segment in self._segments:
            sizes[segment.group] += segment.numel
        parts = []
        for size, same in itertools.groupby(
            zip(self.group_names, sizes, strict=True), lambda x: x[1]
        ):
            names = [str(name) for name, _ in same]
            each = " each" if len(names) > 1 else ""
            parts.append(f"{' .. '.join(dict.fromkeys((names[0], names[-1])))} {size:,}{each}")
        d, D, m = self.subspace_config.d, self.projection.D, len(self.group_names)
        print(
            f"trainable: {d:,} of {D:,} numbers ({100 * d / D:.4g} %) | {m} groups:",
            *parts,
            sep="\n  ",
        )

    def merge_and_unload(self) -> nn.Module:
        """The base model with plain parameters that hold theta_D, trainable as before wrapping."""
        self.refresh()
        return self._take_out(merged=True)

    def unload(self) -> nn.Module:
        """The base model as it was before wrapping, with theta_0."""
        return self._take_out(merged=False)

    def _take_out(self, merged: bool) -> nn.Module:
        self._detach(merged)
        for segment in self._segments:
            segment.parameter.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        model = self.base_model
        del self.base_model
        return model

    def save_pretrained(self, folder, dtype: torch.dtype = torch.float32):
        """Writes folder/adapter.safetensors and returns its path: adapter.save."""
        from . import adapter

        return adapter.save(self, folder, dtype)

    @staticmethod
    def from_pretrained(base_model: nn.Module, path, groups=None) -> "SubspaceModel":
        """base_model wrapped as save_pretrained left it: adapter.load."""
        from . import adapter

        return adapter.load(base_model, path, groups)


def get_subspace_model(model: nn.Module, config: SubspaceConfig) -> SubspaceModel:
    """Puts all trainable parameters of `model` into a random subspace of config.d dimensions.

    model: any nn.Module; its parameters with requires_grad, float32, float64, bfloat16 or float16,
    become theta_0 in named_parameters() order, tied ones once. It is changed in place and comes
    back from merge_and_unload() or unload(). Eq. 2 (DID) and 3 (SAID) of Aghajanyan et al., 2021.

    Raises TypeError or ValueError before anything is changed: d above D or, for SAID, not above m;
    nothing to train; sparse, meta, lazy or integer parameters; parameters that overlap in memory
    without being one; a model that is already wrapped.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(config, SubspaceConfig):
        raise TypeError(f"config must be a SubspaceConfig, got {type(config).__name__}")
    for module in model.modules():
        hooks = module._forward_pre_hooks.values()
        holders = [module, *(getattr(hook, "__self__", None) for hook in hooks)]
        if any(isinstance(holder, SubspaceModel) for holder in holders):
            raise ValueError("model is wrapped in a SubspaceModel already: unload() it first")
    check(model)
    return _class_over(type(model))(model, config)


@functools.cache
def _class_over(base: type) -> type:
    """SubspaceModel with base's name and forward signature, which transformers.Trainer reads."""

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    forward.__wrapped__, forward.__doc__ = base.forward, base.forward.__doc__
    return type(f"Subspace{base.__name__}", (SubspaceModel,), {"forward": forward})


def _blank(base: type) -> SubspaceModel:
    cls = _class_over(base)
    return cls.__new__(cls)


def _allow_missing_base(model: SubspaceModel, incompatible) -> None:
    """A load_state_dict hook: a checkpoint of a SubspaceModel holds none of the base's weights."""
    keys = [key for key in incompatible.missing_keys if "base_model" not in key.split(".")]
    incompatible.missing_keys[:] = keys

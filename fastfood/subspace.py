"""Fine-tuning inside a random subspace: DID and SAID (Aghajanyan et al., 2021) over any nn.Module.

All D trainable numbers of a model become theta_D = theta_0 + lambda * (P theta): equations 2 and 3
of the paper. Modules see their weights as outputs of autograd nodes, whose backward applies the
adjoint of P to their own rows (points.py). theta and lambda_ are ordinary leaves for optimizers,
clipping and checkpoints; coordinates.py holds them, a holder (weights.py, streamed.py, sharded.py)
holds the weights, and this is the model around both.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import adapter as adapter_files
from . import hub
from .adapter import Groups
from .coordinates import Coordinates, check_config, check_name
from .layout import (
    Segment,
    Structure,
    SubspaceConfig,
    check,
    trainable,
)
from .points import Point
from .streamed import Streamed
from .torch_internals import is_exporting
from .weights import Holder, Resident

HOLDERS: dict[str, type[Holder]] = {"resident": Resident, "streamed": Streamed}

# Methods of transformers that change the parameters over which a subspace is laid.
_RESHAPING = ("resize_token_embeddings", "set_input_embeddings", "set_output_embeddings")


class SubspaceModel(Coordinates):
    """A model whose trainable weights are theta_0 + lambda * (P theta); call it as the model.

    theta: (d - m,) for SAID or (d,) for DID, zeros at first. lambda_: (m,), ones at first, or None
    for DID. They are float64 beside a float64 weight, else float32. They are all that trains and
    all that state_dict() holds. theta_0 is read at the first forward, so weights may be loaded or
    broadcast until then; it has to be the same in all processes of a distributed training.

    wrapped is the base model. While it is wrapped, its own parameters require no gradients and show
    the current weights, or theta_0 if weights are streamed. Convert and move the wrapper, not
    wrapped. Gradients of any order are right. Attributes that the wrapper lacks (config, generate,
    device, ...) are the wrapped model's; so is base_model, a transformers model without its head.

    Several adapters can share the base model: add_adapter, set_adapter, delete_adapter and
    disable_adapter. theta, lambda_, subspace_config, projection, group_names and state_dict() are
    those of the active one; switching costs one projection.
    """

    def __init__(
        self, model: nn.Module, config: SubspaceConfig, adapter: str, holder: type[Holder]
    ):
        segments = trainable(model)
        super().__init__(segments, config, adapter)
        self.wrapped = model
        self._structure = Structure(model)
        self.training = model.training
        self.base_digests: list[bytes] | None = None  # of theta_0, once adapter needs them
        self._written: tuple[list, Point | None] | None = None  # the last write's stamp and point
        self._entered = False  # whether this model's forward is about to call the base model's
        for segment in segments:
            segment.parameter.requires_grad_(False)
        # generate() and others call encoders and heads on their own; nothing calls a block so
        self._hooks = [
            module.register_forward_pre_hook(self._before_forward, prepend=True)
            for name, module in model.named_modules()
            if not any(part.isdigit() for part in name.split("."))
        ]
        self._hooks.append(self.register_forward_pre_hook(self._before_forward))
        self._holder = holder(model, segments)
        self.register_load_state_dict_post_hook(_allow_missing_base)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward."""
        return self._compilable()(*args, **kwargs)

    def _compilable(self) -> Callable:
        """The base model, hidden from torch.compile if its weights are made while it runs."""
        if self._holder.exist or not torch.compiler.is_compiling():
            return self.wrapped
        return torch.compiler.disable(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_modules" not in self.__dict__:
                raise
            if name in _RESHAPING:
                message = f"{name}: call it before get_subspace_model or after unload()"
                raise AttributeError(message) from None
            if "wrapped" not in self._modules:
                message = f"{name}: the base model was taken out by unload or merge_and_unload"
                raise AttributeError(message) from None
            return getattr(self._modules["wrapped"], name)

    def extra_repr(self) -> str:
        config = self.subspace_config
        return f"{config.method}, d={config.d}, D={self.projection.D}, seed={config.seed}"

    # Writing the weights

    def _before_forward(self, module, args):
        prepare = self._prepare
        if is_exporting():
            raise RuntimeError(
                "torch.export: wanted a plain model, got one whose weights are functions of theta: "
                "call merge_and_unload() first"
            )
        if torch.compiler.is_compiling():  # writing the weights is no part of a compiled graph
            if module is not self and module is not self.wrapped:
                return
            prepare = torch.compiler.disable(prepare)
        prepare(module)

    def _prepare(self, module: nn.Module) -> None:
        """Before the forward of this model, of the base model or of a module of it."""
        whole = module is self or (module is self.wrapped and not self._entered)
        # a forward that replaces ours need not call wrapped
        self._entered = module is self and "forward" not in self.__dict__
        stamp, point = self._written or (None, None)
        stale = stamp != self._stamp()
        if not stale and whole and point is not None and point.was_left_unseen():
            if self.theta.is_cuda:  # an earlier forward has used old weights already
                raise RuntimeError(
                    "theta or lambda_ was written through .data or by its address before an "
                    "earlier forward, which did not see it: call refresh() after such a write"
                )
            stale = True
        if stale:
            self.refresh()
            _, point = self._written or (None, None)
        if whole and point is not None:
            point.backwards.expect()

    def _stamp(self) -> list:
        """theta_D has to be written anew when this differs from the last write's."""
        # a CUDA graph has to write its own weights, and weights written in one are for it alone
        capturing = self.theta.is_cuda and torch.cuda.is_current_stream_capturing()
        leaves = [(id(p), p.data_ptr(), p._version, p.requires_grad) for p in self._leaves()]
        return [self.active_adapter, self._disabled, capturing, *leaves]

    def refresh(self) -> None:
        """Writes theta_0 + lambda * (P theta) into the weights, one projection per run of a dtype;
        streamed weights take note of theta and lambda_ and are made later.

        A forward calls it if the version counters of theta or lambda_ changed. Call it yourself
        before you read wrapped's weights and after replays of a CUDA graph, and on CUDA after a
        write to theta or lambda_ through .data that is not an optimizer's step.
        Raises RuntimeError if wrapped's weights were moved, converted or written by others, or if
        parameters were added, replaced, resized or removed.
        """
        self._structure.check(self.wrapped, self.segments)
        # a forward may run under no_grad, inference_mode or autocast
        device = self.theta.device.type
        with torch.inference_mode(False), torch.autocast(device, enabled=False), torch.no_grad():
            point = None if self._disabled else Point.of(self._active, self._leaves())
            self._holder.write(point)
        self._written = self._stamp(), point
        # DistributedDataParallel's broadcast would count as a write by others
        self._ddp_params_and_buffers_to_ignore = [f"wrapped.{s.name}" for s in self.segments]

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The trainable tensors of the base model as they were before training."""
        return self._holder.theta_0()

    def _release(self, merged: bool = False) -> None:
        """Lets modules see their parameters, in memory of their own, with theta_D or theta_0."""
        with torch.no_grad():
            _, point = self._written or (None, None)
            self._holder.release(point if merged else None)
        self._written = None

    def _apply(self, fn, recurse=True):
        self._release()

        def wide(t):  # theta and lambda_ stay in float32 beside 16-bit weights
            new = fn(t)
            return t.to(new.device) if new.dtype in (torch.float16, torch.bfloat16) else new

        if recurse:
            self._holder.convert(fn)
        self.base_digests = None
        for adapter in self.adapters.values():
            for p in (adapter.theta, adapter.lambda_):
                if p is not None and p is not self.theta and p is not self.lambda_:
                    p.data, p.grad = wide(p.data), p.grad if p.grad is None else wide(p.grad)
        return super()._apply(wide, recurse=False)

    def _replicate_for_data_parallel(self):
        raise RuntimeError("DataParallel cannot copy a SubspaceModel: use DistributedDataParallel")

    def __getstate__(self):
        self._release()  # autograd's views can be neither copied nor pickled
        return self.__dict__.copy()

    def __reduce__(self):
        return _blank, (type(self.wrapped),), self.__getstate__()

    # What is trained, kept and taken out

    def state_dict(  # type: ignore[override]
        self,
        *args: Any,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """theta and lambda_ alone: the base model has a checkpoint of its own."""
        destination = OrderedDict() if destination is None else destination
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    def _check_possible(self, config: SubspaceConfig) -> None:
        self._holder.check(config)

    def load_adapter(self, path: str | os.PathLike, name: str, groups: Groups = None) -> None:
        """Adds a saved adapter to this base model, `path` as in from_pretrained:
        adapter.load_into."""
        adapter_files.load_into(self, hub.local(path), name, groups)

    def merge_and_unload(self) -> nn.Module:
        """The base model with plain parameters that hold theta_D of the active adapter, trainable
        as before wrapping."""
        self.refresh()
        return self._take_out(merged=True)

    def unload(self) -> nn.Module:
        """The base model as it was before wrapping, with theta_0."""
        return self._take_out(merged=False)

    def _take_out(self, merged: bool) -> nn.Module:
        self._release(merged)
        for segment in self.segments:
            segment.parameter.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        model = self.wrapped
        del self.wrapped
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        dtype: torch.dtype = torch.float32,
        levels: int | None = None,
        *,
        is_main_process: bool = True,
        state_dict: object = None,
        save_function: object = None,
        safe_serialization: bool = True,
    ) -> Path | None:
        """Writes folder/adapter.safetensors and returns its path: adapter.save.

        Processes with is_main_process False write nothing and get None. The arguments after it are
        what Accelerate's examples pass to any model; they change nothing.
        """
        return adapter_files.save(self, folder, dtype, levels) if is_main_process else None

    @staticmethod
    def from_pretrained(
        base_model: nn.Module,
        path: str | os.PathLike,
        groups: Groups = None,
        weights: str = "resident",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "SubspaceModel":
        """base_model wrapped as it was when save_pretrained or push_to_hub wrote the adapter.

        path: a file or folder, else "user/name" on the Hugging Face hub, in the branch, tag or
        commit `revision`. groups: the function of the training, if it was one. weights: as for
        get_subspace_model. theta and lambda_ come back in float32 (float64 beside a float64 weight)
        whatever the file holds.

        Raises FileNotFoundError, or ValueError naming the file: it is damaged or no adapter of
        ours, or base_model is not the one it was trained on. base_model is then left as it was.
        """
        file = adapter_files.read(hub.local(path, revision, token))
        config = file.config(groups)
        try:
            model = get_subspace_model(base_model, config, weights=weights)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file.path}: cannot be put on this model: {error}") from error
        try:
            file.fill(model, model.active_adapter)
        except ValueError:
            model.unload()
            raise
        model.refresh()
        return model

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the adapter and a card to the Hugging Face hub: hub.push_to_hub."""
        return hub.push_to_hub(self, repo_id, **options)


class ShardedSubspaceModel(SubspaceModel):
    """A SubspaceModel over a model that fully_shard has cut; get_subspace_model makes it.

    theta and lambda_ are whole and the same in every process, and parameters() yields them alone:
    the base model's shards require gradients, which FSDP needs, but are for no optimizer to see.
    Gradients come by loss.backward(), of the mean over the processes' losses, as FSDP takes it.
    Every process has to make each call.
    """

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """theta and lambda_: what an optimizer may see."""
        return super().named_parameters(prefix, False, remove_duplicate)

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        dtype: torch.dtype = torch.float32,
        levels: int | None = None,
        **passed: Any,
    ) -> Path:
        """Writes folder/adapter.safetensors in the first process; all return its path then."""
        adapter_files.base_hash(self)  # gathers one tensor at a time, in all processes
        try:
            if dist.get_rank() == 0:
                adapter_files.save(self, folder, dtype, levels)
        finally:
            dist.barrier()
        return Path(folder) / adapter_files.FILE_NAME


def get_subspace_model(
    model: nn.Module,
    config: SubspaceConfig,
    adapter: str = "default",
    weights: str = "resident",
) -> SubspaceModel:
    """Puts all trainable parameters of `model` into a random subspace of config.d dimensions.

    model: any nn.Module; its parameters with requires_grad, float32, float64, bfloat16 or float16,
    become theta_0 in named_parameters() order, tied ones once. It is changed in place and comes
    back from merge_and_unload() or unload(). Eq. 2 (DID) and 3 (SAID) of Aghajanyan et al., 2021.
    adapter: the name of the first adapter.
    weights: "resident", in flat buffers beside theta_0, written once for each optimizer step: the
    fastest; or "streamed", made by blocks for the operators that use them, forward and backward:
    the least memory. The weights are the same to the bit, the gradients to rounding. A model that
    torch.distributed.fsdp.fully_shard has cut keeps its own shards in either case's place.

    Raises TypeError or ValueError before anything is changed: d above D or, for SAID, not above m;
    nothing to train; sparse, meta, lazy or integer parameters; parameters that overlap in memory
    without being one; a model that is already wrapped; "one-block" with streamed weights, since
    such a projection cannot be made in parts.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: wanted an nn.Module, got {type(model).__name__}")
    check_config(config)
    check_name(adapter)
    if weights not in HOLDERS:
        raise ValueError(f"weights: wanted one of {tuple(HOLDERS)}, got {weights!r}")
    kind, held, check_model = SubspaceModel, HOLDERS[weights], check
    # modules cut by fully_shard have this method; torch.distributed.fsdp is imported for them alone
    if any(hasattr(module, "set_requires_gradient_sync") for module in model.modules()):
        if weights != "resident":
            raise ValueError(f"weights: wanted 'resident' for a sharded model, got {weights!r}")
        from . import sharded

        kind, held = ShardedSubspaceModel, sharded.Sharded
        check_model = sharded.check
    held.check(config)
    for module in model.modules():
        hooks = module._forward_pre_hooks.values()
        holders = [module, *(getattr(hook, "__self__", None) for hook in hooks)]
        if any(isinstance(holder, SubspaceModel) for holder in holders):
            raise ValueError("model is wrapped in a SubspaceModel already: unload() it first")
    check_model(model)
    base: Any = type(model)
    return _class_over(base, kind)(model, config, adapter, held)


@functools.cache
def _class_over(base: Any, kind: type[SubspaceModel] = SubspaceModel) -> Any:
    """`kind` with base's name and forward signature, which transformers.Trainer reads."""

    @functools.wraps(base.forward, assigned=["__doc__"], updated=())
    def forward(self, *args, **kwargs):
        return self._compilable()(*args, **kwargs)

    return type(f"Subspace{base.__name__}", (kind,), {"forward": forward})


def _blank(base: Any) -> SubspaceModel:
    cls = _class_over(base)
    return cls.__new__(cls)


def _allow_missing_base(model: SubspaceModel, incompatible) -> None:
    """A load_state_dict hook: a checkpoint of a SubspaceModel holds none of the base's weights."""
    keys = [key for key in incompatible.missing_keys if "wrapped" not in key.split(".")]
    incompatible.missing_keys[:] = keys

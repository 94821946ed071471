"""The private names of torch that fastfood uses, all of them, so that a new torch is checked here.

Each says what it is for and since which torch it is there; all of them are there since torch 2.10,
the oldest that fastfood takes, and `tests/test_repository.py` refuses such names in other files.
What torch.nn.Module and Tensor hold ready for their subclasses under names with an underscore
(`_parameters`, `_modules`, `_forward_pre_hooks`, `_apply`, `_version`) is as old as torch and is
not counted.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map_only  # nested arguments; torch 2.2

__all__ = ["tree_leaves", "tree_map_only"]

# Raises RuntimeError with the message made by its second argument unless the first, which may be
# symbolic, holds: fakes check sizes with it; torch 2.1.
check = torch._check

# Whether torch.func (grad, vmap, jvp) looks at the running call; torch 2.0.
functorch_is_active = torch._C._are_functorch_transforms_active

# A context in which operators are called below autograd, whose kernel for ours is Python; 2.0.
below_autograd = torch._C._AutoDispatchBelowAutograd

# A context in which a subclass of Tensor is seen as a plain tensor by torch functions; torch 2.0.
without_torch_function = torch._C.DisableTorchFunctionSubclass

# The number of the running backward, -1 outside of one: tells one backward from the next; 2.0.
current_backward = torch._C._current_graph_task_id

# Makes a tensor of a subclass that has a shape, a dtype and a device but no data; torch 2.0.
make_without_data = Tensor._make_wrapper_subclass


def is_transformed() -> bool:
    """Whether torch.func or forward-mode autograd looks at eager calls; the level is of 2.0."""
    return functorch_is_active() or forward_ad._current_level >= 0


def is_exporting() -> bool:
    """Whether torch.export is tracing; torch 2.7. torch.compiler.is_exporting() will not do: in
    torch 2.10 it is true while torch.compile traces, too."""
    return torch.compiler._is_exporting_flag


def saved_tensors_hooks_around() -> tuple[Callable, Callable] | None:
    """The innermost torch.autograd.graph.saved_tensors_hooks, such as those of gradient
    checkpointing, also while tracing; torch 2.8."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def call_after_backward(function: Callable[[], None]) -> None:
    """Has autograd call a function when the running backward is done; torch 2.0."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def run_first(output: Tensor, number: int) -> None:
    """Puts the node that made `output` at a place in autograd's order of those that are ready, the
    highest number first; torch 2.2."""
    if output.grad_fn is not None:
        output.grad_fn._set_sequence_nr(number)  # type: ignore[attr-defined]


def current_ddp() -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel whose forward is running; torch 2.0."""
    return nn.parallel.DistributedDataParallel._active_ddp_module


def renew_recurrent(modules: list[nn.RNNBase]) -> None:
    """Tells recurrent modules of the tensors that their attributes refer to now; torch 2.0. Not by
    their own method: cuDNN's flattening would take the tensors out of a flat buffer."""
    for module in modules:
        weights = [getattr(module, name, None) for name in module._flat_weights_names]
        module._flat_weights = weights
        module._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]

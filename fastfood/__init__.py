"""fastfood: the fast Walsh-Hadamard transform and the Fastfood projection for PyTorch, and what
they are good for.

`hadamard_transform` is the transform as a differentiable operator. `Fastfood`, `Dense` and `Sparse`
are random linear maps from d to D dimensions that store nothing of size D. `get_subspace_model`
trains any `nn.Module` in d dimensions (DID and SAID), and the command `fastfood d90` measures a
task's intrinsic dimension with it. This package needs torch alone.

Beside it are `fastfood.peft` (the same as methods of PEFT), `fastfood.hub` (task vectors on the
Hugging Face hub), `fastfood.sampler` (random features in scikit-learn) and `fastfood.guides`:
runnable examples, notes on migration, and the definition of every bit.
"""

from . import loading  # noqa: F401 first, as it says what is missing
from .coordinates import parameter_groups
from .features import FastfoodFeatures
from .hadamard import (
    hadamard_transform,
    hadamard_transform_,
    hadamard_transform_12N,
    hadamard_transform_20N,
    hadamard_transform_28N,
    hadamard_transform_40N,
    hadamard_transform_KN,
    random_signs,
)
from .layout import SubspaceConfig
from .projection import Dense, Fastfood, Sparse
from .subspace import SubspaceModel, get_subspace_model

__version__ = "0.1.0"

__all__ = [
    "Dense",
    "Fastfood",
    "FastfoodFeatures",
    "Sparse",
    "SubspaceConfig",
    "SubspaceModel",
    "get_subspace_model",
    "hadamard_transform",
    "hadamard_transform_",
    "hadamard_transform_12N",
    "hadamard_transform_20N",
    "hadamard_transform_28N",
    "hadamard_transform_40N",
    "hadamard_transform_KN",
    "parameter_groups",
    "random_signs",
]

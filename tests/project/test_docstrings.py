"""Every public name says what a caller has to know: shapes, dtypes, what is raised and the source,
where they apply, and each of its arguments."""

import importlib
import inspect
import re

import pytest

import fastfood

SIGNS = {
    "shape": r"\((\.\.\.|[dDLNnm]|samples),|\([dDmnN]\b",
    "dtype": r"float32|dtype",
    "raises": r"[Rr]aises",
    "source": r"et al|Smola|[Ee]q\. \d|csrc/definitions\.h|Paley|Williamson",
}
PARTS = {
    "fastfood.Dense": "shape dtype raises source",
    "fastfood.Fastfood": "shape dtype raises source",
    "fastfood.FastfoodFeatures": "raises source",
    "fastfood.Sparse": "shape dtype raises source",
    "fastfood.SubspaceConfig": "raises source",
    "fastfood.SubspaceModel": "shape dtype",
    "fastfood.get_subspace_model": "dtype raises source",
    "fastfood.hadamard_transform": "shape dtype raises",
    "fastfood.hadamard_transform_": "shape dtype raises",
    "fastfood.hadamard_transform_12N": "shape dtype raises source",
    "fastfood.hadamard_transform_20N": "shape dtype raises source",
    "fastfood.hadamard_transform_28N": "shape dtype raises source",
    "fastfood.hadamard_transform_40N": "shape dtype raises source",
    "fastfood.hadamard_transform_KN": "raises source",
    "fastfood.parameter_groups": "raises",
    "fastfood.random_signs": "shape dtype raises source",
    "fastfood.hub.local": "raises",
    "fastfood.hub.model_card": "",
    "fastfood.hub.push_to_hub": "dtype raises",
    "fastfood.peft.DidConfig": "raises",
    "fastfood.peft.SaidConfig": "raises",
    "fastfood.sampler.FastfoodSampler": "raises",
}
METHODS = {
    "fastfood.Fastfood.__call__": "shape dtype raises",
    "fastfood.Fastfood.adjoint": "shape raises",
    "fastfood.Fastfood.rows": "shape dtype raises",
    "fastfood.Fastfood.rows_adjoint": "shape dtype raises",
    "fastfood.Fastfood.spread_gradient": "shape dtype raises",
    "fastfood.Fastfood.perturb_": "shape dtype",
    "fastfood.Fastfood.perturbed": "shape dtype",
    "fastfood.Fastfood.to_dense": "shape dtype",
    "fastfood.FastfoodFeatures.forward": "shape dtype raises",
    "fastfood.SubspaceModel.add_adapter": "raises",
    "fastfood.SubspaceModel.from_pretrained": "raises",
    "fastfood.SubspaceModel.refresh": "raises",
    "fastfood.sampler.FastfoodSampler.transform": "shape dtype raises",
}
MODULES = ("fastfood", "fastfood.hub", "fastfood.peft", "fastfood.sampler")


def module(name):
    for package in {"fastfood.peft": ["peft"], "fastfood.sampler": ["sklearn"]}.get(name, []):
        pytest.importorskip(package)
    return importlib.import_module(name)


def found(path):
    name = next(m for m in reversed(MODULES) if path.startswith(f"{m}."))
    value = module(name)
    for part in path.removeprefix(f"{name}.").split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_here(name):
    names = {f"{name}.{public}" for public in module(name).__all__}
    own = r"\.\w+$"
    assert names == {path for path in PARTS if re.sub(own, "", path) == name}


@pytest.mark.parametrize("path", [*PARTS, *METHODS])
def test_a_docstring_has_the_parts_that_apply(path):
    told = inspect.getdoc(found(path))
    for part in (PARTS | METHODS)[path].split():
        assert re.search(SIGNS[part], told), f"{path}: no {part} in its docstring"


@pytest.mark.parametrize("path", PARTS)
def test_a_docstring_names_each_argument(path):
    value = found(path)
    if path == "fastfood.SubspaceModel":  # get_subspace_model makes it
        return
    told = inspect.getdoc(value)
    own = inspect.signature(value).parameters
    if path.startswith("fastfood.peft."):
        own = fastfood.SubspaceConfig.__dataclass_fields__.keys() - {"method"}
    for name in own:
        assert re.search(rf"\b{name}\b", told), f"{path}: {name} is not in its docstring"


@pytest.mark.parametrize("path", PARTS)
def test_public_methods_have_docstrings(path):
    value = found(path)
    if not inspect.isclass(value):
        return
    for name, member in inspect.getmembers(value):
        ours = getattr(member, "__module__", "") or ""
        if not name.startswith("_") and callable(member) and ours.startswith("fastfood"):
            assert inspect.getdoc(member), f"{path}.{name} has no docstring"

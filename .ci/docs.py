"""Builds the API reference and the guides' pages into build/docs, and fails on any warning."""

import importlib
import typing
import warnings
from pathlib import Path

import pdoc

from fastfood.peft import DidConfig, SaidConfig

MODULES = ["fastfood", "fastfood.peft", "fastfood.hub", "fastfood.sampler", "fastfood.guides"]

for config in (SaidConfig, DidConfig):  # their inherited hints name what only PEFT imports
    config.__init__.__annotations__ = typing.get_type_hints(config)
for module in MODULES:
    importlib.import_module(module)  # what other packages warn of is not ours

warnings.simplefilter("error")
pdoc.render.configure(docformat="google", math=True, search=True)
pdoc.pdoc(*MODULES, output_directory=Path("build/docs"))

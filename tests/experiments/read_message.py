"""Acts as a receiver who has a message's file and the base model and nothing else: prints the
decoded model's predictions on rows of the digits, as JSON. test_certify.py runs it."""

import json
import sys
from pathlib import Path

import torch

from fastfood.experiments.bound.certify import decoded_model
from fastfood.experiments.data.tasks import load_task
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.training.models import build_base
from fastfood.experiments.training.train import predict, some_rows

torch.set_num_threads(1)
settings = complete(Settings(device="cpu"))
task = load_task(settings)
scored = decoded_model(build_base(settings, 10, 3), Path(sys.argv[1]).read_bytes())
rows = some_rows(task.train, 150), task.test
print(json.dumps([predict(scored, task, part) for part in rows]))

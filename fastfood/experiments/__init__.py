"""Measures the intrinsic dimension d90 of fine-tuning tasks: the smallest number of trained
parameters that reaches 90 % of the full fine-tuning score. From the bottom up:

- `options`, `files`, `refusal`: what settings, files and refusals are made with. `sources`: tasks
  by name.
- `config`: the settings of a measurement; `plan`: its trials; `curves`: what their scores say.
- `rows`, `tasks`: the data. `models`, `train`: one trial.
- `masked`, `pretrain`: small models to be measured.
- `database`, `record`, `workers`, `run`: who runs which trial where, and what came of it.
- `report`: what is shown. `bound`: what error an adapter's few bits promise.
- `recipes`, `study`, `cli`, `adapters`: studies and the command line.
"""

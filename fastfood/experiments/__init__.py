"""Measures the intrinsic dimension d90 of fine-tuning tasks: the smallest number of trained
parameters that reaches 90 % of the full fine-tuning score. From the bottom up:

- `options`, `files`: what settings and files are made with.
- `config`: the settings of a measurement; `plan`: its trials; `curves`: what their scores say.
- `rows`, `sources`, `tasks`: the data. `models`, `train`: one trial.
- `masked`, `pretrain`: small models to be measured.
- `record`, `workers`, `run`: who runs which trial where, and what came of it.
- `report`: what is shown. `bound`: what error an adapter's few bits promise.
- `recipes`, `study`, `cli`, `adapters`: studies and the command line.
"""

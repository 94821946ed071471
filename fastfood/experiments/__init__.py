"""Measures the intrinsic dimension d90 of fine-tuning tasks: the smallest number of trained
parameters that reaches 90 % of the full fine-tuning score. From the bottom up, each room built on
those before it alone:

- `files`, `refusal`: how files are written whole, and how commands end that cannot be done.
- `settings`: what is asked for, as types.
- `data`: labelled rows. `training`: models, and one trial.
- `trials`: which trials there are, who runs them, and what came of them.
- `report`: what is shown. `bound`: what error an adapter's few bits promise.
- `recipes`, `study`, `adapters`, `cli`: studies and the command line.
"""

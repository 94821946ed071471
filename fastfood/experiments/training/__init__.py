"""Models and their training: `models` builds what a method trains, `train` is one trial, `masked`
and `pretrain` make small models to be measured, `environment` says what a process computes with.
"""

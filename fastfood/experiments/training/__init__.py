"""Models and their training: `models` builds what a method trains, `train` is one trial, `writing`
what a model writes and how it is scored, `rewards` and `grpo` are learning from that. `masked`,
`causal` and `pretrain` make small models to be measured, `environment` says what a process computes
with."""

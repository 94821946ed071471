"""Measures the intrinsic dimension d90 of a fine-tuning task: the smallest number of trained
parameters that reaches 90 % of the full fine-tuning score. `config` holds the settings of a study,
`tasks` the data, `train` one trial, `search` all trials and d90, `report` what is written at the
end, and `cli` the command `fastfood d90`. `adapters` holds the commands `fastfood adapter ...`."""

"""What is asked for, as types: `options` makes models whose fields are options, `metrics` and
`sources` are the metrics and the tasks by name, `task` is a data set and a model, `language` what
there is besides where the model writes, `measurement` and `pretraining` are what is done with them,
`study` is several measurements, and `trial` is one training."""

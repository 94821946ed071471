"""What is asked for, as types: `options` makes the fields of settings, `sources` are the tasks by
name, `measurement` and `pretraining` the settings of these, `study` several measurements."""

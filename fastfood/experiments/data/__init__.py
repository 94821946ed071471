"""The data of a measurement: `readers` read files, `rows` finds splits there and on the hub,
`labels` makes numbers of labels, `parts` divides rows, `checkpoints` knows of a model what its data
need, `arithmetic` makes sums up, and `tasks` and `written` load what `task` describes, for models
that classify and for models that write."""

"""The data of a measurement: `readers` read files, `rows` finds splits there and on the hub,
`labels` makes numbers of labels, `parts` divides rows, and `tasks` puts them together."""

"""The trials of a study: `facts` looks at data and models, `plan` says which trials there are,
`curves` what their scores say, `gain` what those of relative metrics do, `database`, `record` and
`folder` keep them, `workers` and `run` run them."""

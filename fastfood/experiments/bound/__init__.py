"""Bounds what an adapter loses on new rows by the few bits that it takes: `command` is the command
line, and `certify` goes from an adapter to its bounds with `qat` (fine-tuning on few levels),
`message` (the bits), `losses` (what a model loses on rows), `formulas` (the bounds of the
literature) and `tokens` (these bounds for language models)."""

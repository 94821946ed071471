"""Bounds an adapter's error on new rows by the few bits that it takes: `command` is the command
line, and `certify` goes from an adapter to its bounds with `qat` (fine-tuning on few levels),
`message` (the bits) and `formulas` (the bounds of the literature)."""

"""What error on new rows an adapter's few bits promise: `command` is the command line, `certify`
the way from an adapter to its bounds, by `qat` (fine-tuning on few levels), `message` (the bits)
and `formulas` (the bounds of the literature)."""

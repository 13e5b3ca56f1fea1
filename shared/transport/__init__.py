"""KV between processes. `ucx` is the real transport; `loopback` keeps the same promises inside one process."""

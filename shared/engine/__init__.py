"""The engine: one step for a batch of sequences over a paged KV cache. Token ids and block ids in, token ids out.

`step.Engine` computes; `thread.EngineThread` does so off the event loop. `pieces` and `settings` need no torch.
"""

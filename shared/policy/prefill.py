"""What a prefill instance computes next (paper sections 3.1 and 4.3)."""

from collections.abc import Iterable

Waiting = tuple[int, int]  # (context tokens to compute, KV blocks they need)


def next_prefill_batch(waiting: Iterable[Waiting], batch_tokens: int, free_blocks: int) -> int:
    """How many requests, from the head of the queue, go into the next batch.

    First come first served. Prompts are packed up to `batch_tokens` (L_m, the length at which this model on this device
    becomes compute-bound: beyond it a batch only makes every member wait); a longer prompt runs alone. 0 if the head
    does not fit into the free blocks: then everybody waits, which is the back-pressure that keeps the order fair.
    """
    count = total = 0
    for tokens, blocks in waiting:
        if blocks > free_blocks or (count and total + tokens > batch_tokens):
            break
        count += 1
        total += tokens
        free_blocks -= blocks
    return count

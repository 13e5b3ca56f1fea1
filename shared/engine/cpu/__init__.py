"""What the engine computes on a CPU with kernels of its own."""

"""Timing of the kernels against eager torch and torch.compile; ``tools/bench_kernels.py`` is the command line."""

"""What the project's parts cost beside their floors: reading shards, encoding them, a training step. The command line
is tools/bench.py; kernels are timed by tools/bench_kernels.py."""

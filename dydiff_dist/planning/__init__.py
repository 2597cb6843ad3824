"""What a run will need, before anything of it is started: memory, time, cost."""

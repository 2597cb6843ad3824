"""Distributed training of Dynamical Diffusion forecasters for video and physical fields."""

__version__ = "0.2.0"

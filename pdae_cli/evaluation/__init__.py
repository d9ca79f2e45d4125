"""Experiments: small functions over the engine, each with its figures.

Each takes a model and pictures (float32, (N, C, H, W), in [-1, 1]) and returns a `Finding`: rows
for a table, a plot, mostly a sheet, and what they say in words. None has a loop of its own over
timesteps: trajectories are the engine's.
"""

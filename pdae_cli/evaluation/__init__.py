"""Experiments: functions over the engine, one a file. Each takes a model and pictures (float32,
(N, C, H, W), in [-1, 1]) and returns a `Finding`; trajectories are the engine's."""

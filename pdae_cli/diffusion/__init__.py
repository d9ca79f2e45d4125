"""The process: noise schedule, solvers of its ODE and SDE, trajectories. Knows no network."""

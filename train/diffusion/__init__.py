"""The diffusion process: noising, parameterization, loss, guidance, solvers."""

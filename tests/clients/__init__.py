"""Real clients, unmodified, against our server and beside it `mlx_lm.server`: `make test-clients`."""

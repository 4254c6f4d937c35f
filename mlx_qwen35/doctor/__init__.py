"""Is it right, on this machine, with this checkpoint? Every property is computed in two ways that should agree."""

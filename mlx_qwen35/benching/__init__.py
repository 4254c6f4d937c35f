"""How fast is it here? Prompts and answers timed on this machine, beside peers in the same run."""

"""The operations worth a kernel: each with its definition first, and every faster form tested against it."""

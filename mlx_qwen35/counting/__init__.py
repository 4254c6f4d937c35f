"""What one step of a network costs in launches and bytes, counted from its graph. No weight is made, nothing is run."""

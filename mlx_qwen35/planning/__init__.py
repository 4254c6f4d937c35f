"""What fits a Mac, and the speed that nothing can beat there. Arithmetic: no weights are read, nothing is timed."""

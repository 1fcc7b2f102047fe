"""Complete search of small fully connected networks: compiled, on the CPU, without torch."""

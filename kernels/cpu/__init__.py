"""What the kernels do on a CPU that they do nowhere else: tiles over threads, and the sparse training step."""

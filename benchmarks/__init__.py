"""How fast diffmem is, beside the device's peak and other packages: `python -m benchmarks`, from a checkout."""

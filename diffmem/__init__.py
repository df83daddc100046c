"""diffmem: does a diffusion model copy its training data, and up to how much data does it do so?"""

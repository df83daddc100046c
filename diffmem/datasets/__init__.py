"""Real images that ship with diffmem; README.md beside this file names their sources."""

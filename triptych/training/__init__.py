"""One loop, readable from top to bottom."""

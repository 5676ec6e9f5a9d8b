"""Building blocks that several papers share."""

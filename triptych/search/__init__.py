"""The index over a folder, and its queries."""

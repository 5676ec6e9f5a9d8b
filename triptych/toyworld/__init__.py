"""The toy world: real media files in which the modalities truly share causes."""

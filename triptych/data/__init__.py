"""From recordings to batches: windows in time, transforms, loading."""

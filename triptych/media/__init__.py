"""Files in, seconds and tensors out: the one door to video and audio files."""

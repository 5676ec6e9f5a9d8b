"""Backbones; each answers the contract of encoder.py."""

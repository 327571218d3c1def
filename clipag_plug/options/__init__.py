"""Torch-free option dataclasses, one per job."""

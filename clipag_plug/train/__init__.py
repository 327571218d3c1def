"""Adversarial fine-tuning of CLIP image encoders: `python -m clipag_plug.train --recipe FILE`."""

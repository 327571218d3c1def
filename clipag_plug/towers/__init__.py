"""The networks that CLIP's towers are made of."""

"""Access control by encrypted images: a model that is trained on encrypted images works on images of that key only."""

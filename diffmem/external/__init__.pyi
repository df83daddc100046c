from .score import score_images as score_images

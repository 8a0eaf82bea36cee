"""Finding a photo in the generator: projection, then pivotal tuning."""

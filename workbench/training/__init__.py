"""Short trainings: language models from scratch, fine-tunes, and what papers need of them."""

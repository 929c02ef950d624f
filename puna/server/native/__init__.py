"""What no other API has words for: tokens, prompts as the model reads them, scores; health, metrics."""

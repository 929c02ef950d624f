"""What OpenAI's API has no words for: tokens, prompts as the model reads them, scores; health, metrics, the
ledger."""

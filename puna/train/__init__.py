"""Training, from raw text to a quantized file that runs. [extra: torch]"""

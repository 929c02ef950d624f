"""What a step does to parameters: which optimizer has which, and how large its steps are."""

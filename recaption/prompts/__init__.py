"""User prompts rewritten in the style of the training captions."""

"""Client of an OpenAI-compatible chat endpoint."""

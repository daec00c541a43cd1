"""Text generation with a KV cache: greedy, sampling, beam search."""

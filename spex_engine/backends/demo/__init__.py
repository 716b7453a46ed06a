"""The embedded model: a small Llama trained here on notes whose interactions are known."""

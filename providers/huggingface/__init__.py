"""Local Hugging Face models, each in a child process of its own."""

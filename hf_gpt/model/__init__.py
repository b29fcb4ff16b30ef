"""The model: every module here is saved with each checkpoint. README.md says in which order to read them."""

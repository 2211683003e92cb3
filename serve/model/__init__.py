"""The model behind the endpoint: its queue, its batches, its session."""

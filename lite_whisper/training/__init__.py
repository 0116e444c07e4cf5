"""Fine-tuning and what other libraries need of a LiteWhisper."""

"""Recovery by distillation, and fine-tuning with other libraries."""

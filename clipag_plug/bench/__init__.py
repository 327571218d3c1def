"""The bench: tasks that measure models, one record a task, model and seed, and a report made from the records."""

"""What the operator writes: one table of keys, the reader of YAML, the override files."""

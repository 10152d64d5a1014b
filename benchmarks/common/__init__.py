"""What several benchmarks use; nothing here measures by itself."""

"""Many items, one result each: workers, limits, resuming, shards. Knows nothing about networks."""

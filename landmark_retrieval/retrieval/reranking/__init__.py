"""Re-ranking without labels: ranked lists in, ranked lists out."""

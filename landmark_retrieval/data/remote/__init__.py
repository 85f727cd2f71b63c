"""Files at URLs, kept in a bounded cache."""

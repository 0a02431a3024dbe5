"""Launch, A/B test and promotion."""

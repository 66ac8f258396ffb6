"""What runs a model: hardware, isolated environments, processes, the HTTP client, the mock engine."""
